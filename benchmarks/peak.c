/* Peak arithmetic of one core, by instructions that touch no memory: prints "fp32 GFLOP/s" and "bf16 GFLOP/s".
 * Multiply and add count apart. 0 stands for what the compiler was not told the processor has. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#endif

enum { CHAINS = 12, STEPS = 1000000, ROUNDS = 8 }; /* twelve independent sums hide the latency of each */

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* GFLOP/s of the fastest of ROUNDS runs of STEPS times `body`, of which each does `flop` operations. */
#define BEST(result, flop, body)                                   \
    for (int round = 0; round < ROUNDS; round++) {                 \
        double start = seconds();                                  \
        for (long step = 0; step < STEPS; step++) { body }         \
        double rate = 1e-9 * STEPS * (flop) / (seconds() - start); \
        if (rate > (result)) (result) = rate;                      \
    }

#define EACH_CHAIN _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++)

int main(void) {
    double fp32 = 0, bf16 = 0;
    volatile float sink = 0; /* keeps the sums alive */
#if defined(__AVX512F__)
    __m512 sum[CHAINS], factor = _mm512_set1_ps(0.999f), term = _mm512_set1_ps(1e-6f);
    EACH_CHAIN sum[i] = _mm512_set1_ps((float)i);
    BEST(fp32, CHAINS * 16 * 2, EACH_CHAIN sum[i] = _mm512_fmadd_ps(sum[i], factor, term);)
    EACH_CHAIN sink += _mm512_reduce_add_ps(sum[i]);
#elif defined(__AVX2__) && defined(__FMA__)
    __m256 sum[CHAINS], factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(1e-6f);
    EACH_CHAIN sum[i] = _mm256_set1_ps((float)i);
    BEST(fp32, CHAINS * 8 * 2, EACH_CHAIN sum[i] = _mm256_fmadd_ps(sum[i], factor, term);)
    EACH_CHAIN sink += _mm256_cvtss_f32(sum[i]);
#endif
#if defined(__AVX512F__) && defined(__AVX512BF16__)
    __m512bh halves = (__m512bh)_mm512_set1_epi16(0x3f00); /* 0.5 */
    EACH_CHAIN sum[i] = _mm512_set1_ps((float)i);
    BEST(bf16, CHAINS * 32 * 2, EACH_CHAIN sum[i] = _mm512_dpbf16_ps(sum[i], halves, halves);)
    EACH_CHAIN sink += _mm512_reduce_add_ps(sum[i]);
#endif
#if defined(__AMX_BF16__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0) {
        struct {
            unsigned char palette, start_row, reserved[14];
            unsigned short bytes_per_row[16];
            unsigned char rows[16];
        } tiles;
        memset(&tiles, 0, sizeof tiles);
        tiles.palette = 1;
        memset(tiles.rows, 16, 8);
        for (int i = 0; i < 8; i++) tiles.bytes_per_row[i] = 64;
        _tile_loadconfig(&tiles);
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
        BEST(bf16, 4 * 2 * 16 * 16 * 32, _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6);
             _tile_dpbf16ps(3, 5, 7);)
        _tile_release();
    }
#endif
    printf("fp32 %.1f\nbf16 %.1f\n", fp32, bf16);
    return 0;
}
