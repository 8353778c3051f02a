"""A page in headless Chromium, spoken to through two pipes: messages of its DevTools protocol, JSON with a 0 behind."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import sys

with contextlib.suppress(ImportError):  # Windows has none, and no pipes of these numbers
    import fcntl

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 30  # seconds for an answer


def find_browser():
    """Chromium's program, None where there is none that pipes can be given to."""
    return next(filter(None, map(shutil.which, NAMES)), None) if os.name == "posix" else None


class Page:
    """An empty page, of this many pixels, without a network. `problems` are the errors that it has reported."""

    def __init__(self, profile, width=1280, height=900):
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        # The browser reads from 3 and writes to 4. What has such a number here is out of the way from 10 on.
        given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                    "--disable-background-networking", "--disable-component-update", "--disable-sync",
                    "--hide-scrollbars", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        program = "import os, sys; os.dup2({}, 3); os.dup2({}, 4); os.execv(sys.argv[1], sys.argv[1:])".format(*given)
        self.process = subprocess.Popen([sys.executable, "-c", program, find_browser(), *switches], pass_fds=given,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (commands, answers, *given):
            os.close(end)
        self.numbers, self.rest, self.problems, self.session, self.events = itertools.count(1), b"", [], {}, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        self.resize(width, height)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.terminate()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)

    def resize(self, width, height, touch=False):
        """Pretend to a screen of so many pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def open(self, path):
        """Load a file, to the end."""
        self.events = []
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self.receive()

    def run(self, code):
        """The value of JavaScript, of a promise what it promises. Raises AssertionError for an exception."""
        done = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key):
        """Press a key, and let go of it."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 else "",
                      code=key, windowsVirtualKeyCode={"ArrowRight": 39}.get(key, 0))

    def screenshot(self, path, whole=False):
        """Write what is seen as a PNG file; the whole page, or what fits onto the screen."""
        done = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(done["data"]))

    def call(self, method, **parameters):
        """Give a command of the protocol and return its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters, **self.session}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != number:
            pass
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def receive(self):
        """The next message, when it has come; what it says about errors is kept."""
        while b"\0" not in self.rest:
            assert select.select([self.answers], [], [], PATIENCE)[0], "the browser does not answer"
            part = os.read(self.answers, 1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(message)
        self.events.append(method := message.get("method"))
        said = message.get("params", {})
        if (method == "Runtime.exceptionThrown" or said.get("type") in ("error", "assert")
                or said.get("entry", {}).get("level") == "error"):
            self.problems.append(said)
        return message
