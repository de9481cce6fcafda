"""How eval.py evaluates every reading of CLIP in one pass over the images. In the order of the data:

controls        what is evaluated: the paper's readings, one's own, and the controls
encode          images -> patch features, the only expensive step; the feature cache
scoring         patch features -> one record for each image
batch_error     the figures of many depth maps of one image; constant_error those of every constant
distributed     processes that share the images
journal         the records on disk, so that a run that stopped goes on; fingerprint says what they depend on
results         records -> means, best constants, bootstrap intervals
figures         PNGs
"""
