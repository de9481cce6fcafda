"""A headless Chromium or Chrome for tests, driven through its debugging pipe: no driver, no port, no Python package."""

import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

TEN_MINUTES = 600  # [s] for an answer: it ends a hang, and no slow machine meets it


def find_browser() -> str | None:
    """The Chromium or Chrome of this machine; `$CHROME` names another."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next(filter(None, map(shutil.which, (os.environ.get("CHROME", ""), *names))), None)


class Browser:
    """One tab. What the page logs, throws and requests is kept in `errors` and `requests`."""

    def __init__(self, executable: str, profile: Path) -> None:
        flags = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        flags += ["--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={profile}", "about:blank"]
        for name in ("in", "out"):
            os.mkfifo(profile / name)
        command = ["sh", "-c", 'exec "$@" 3<"$0/in" 4>"$0/out" >"$0/log" 2>&1', profile, executable, *flags]
        self.process = subprocess.Popen(command)
        self.write_end, self.read_end = os.open(profile / "in", os.O_WRONLY), os.open(profile / "out", os.O_RDONLY)
        self.buffer, self.number, self.session, self.errors, self.requests = b"", 0, {}, [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends one command and returns its result; events on the way are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def receive(self) -> dict[str, Any]:
        """The next message; events are kept."""
        while b"\0" not in self.buffer:
            ready, *_ = select.select([self.read_end], [], [], TEN_MINUTES)
            chunk = os.read(self.read_end, 1 << 20) if ready else b""
            if not chunk:
                raise RuntimeError(f"the browser does not answer, or has ended ({self.process.poll()})")
            self.buffer += chunk
        text, self.buffer = self.buffer.split(b"\0", 1)
        match message := json.loads(text):
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.errors.append(json.dumps(details))
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error" | "warning", "text": said}}}:
                self.errors.append(said)
            case {"method": "Network.requestWillBeSent", "params": {"request": {"url": url}}}:
                self.requests.append(url)
        return message

    def open(self, url: str) -> None:
        """Goes to `url` and waits until the page is loaded and has drawn."""
        self.call("Page.navigate", url=url)
        while self.receive().get("method") != "Page.loadEventFired":
            pass
        self.settle()

    def settle(self) -> None:
        """Waits until the page has drawn."""
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression (awaited), as JSON can hold it."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description"))
        return result["result"].get("value")

    def hover(self, selector: str, x: float, y: float) -> None:
        """Moves the mouse to a place of the first such element: fractions of its width and height."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{element}.scrollIntoView({{block: 'center'}})")
        area = self.js(f"{element}.getBoundingClientRect().toJSON()")
        place = {"x": area["left"] + x * area["width"], "y": area["top"] + y * area["height"]}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        self.settle()

    def show(self, width: int, height: int, phone: bool = False) -> None:
        """Sets the window's size, and whether it is a phone's screen."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.settle()

    def close(self) -> None:
        """Ends the browser."""
        self.process.kill()
        self.process.wait()
        for end in (self.read_end, self.write_end):
            os.close(end)
