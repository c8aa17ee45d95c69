"""Take a picture of TensorBoard's page of custom scalars: ``python tests/tensorboard_png.py LOGDIR OUT.png``.

Needs Chromium. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def tensorboard(logdir: Path, timeout: float = 120) -> Iterator[str]:
    """Address of a TensorBoard that has read the log."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(logdir),
        "--port",
        str(port),
        "--host",
        "localhost",
        "--load_fast=false",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://localhost:{port}"
        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                with urllib.request.urlopen(f"{address}/data/plugin/custom_scalars/layout", timeout=10) as answer:
                    layout = answer.read()
                if layout.strip() != b"{}":
                    break
            if time.monotonic() > end or process.poll() is not None:
                raise SystemExit(
                    f"TensorBoard shows no custom scalars for {logdir} after {timeout:.0f} s; was it logged to by AdamMiniCallback?"
                )
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


def picture(url: str, out: Path, width: int, height: int, wait: float) -> None:
    """Open ``url`` in a headless browser with a new profile, and save what is seen after ``wait`` seconds of page time."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"None of {', '.join(_BROWSERS)} is installed; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command += [f"--virtual-time-budget={int(1000 * wait)}", f"--screenshot={out.resolve()}", url]
        subprocess.run(command, check=True, timeout=300, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if not out.is_file():
        raise SystemExit(f"{browser} made no picture of {url}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logdir", type=Path, help="directory of TensorBoard's event files")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument(
        "--page", default="custom_scalars", help="page of TensorBoard: custom_scalars, timeseries, scalars, images, histograms"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(1600, 1500), metavar=("WIDTH", "HEIGHT"), help="size of the window")
    parser.add_argument("--wait", type=float, default=30, help="seconds of the page's own time before the picture")
    arguments = parser.parse_args()
    with tensorboard(arguments.logdir) as address:
        picture(f"{address}/#{arguments.page}", arguments.out, *arguments.size, arguments.wait)
    print(arguments.out)


if __name__ == "__main__":
    main()
