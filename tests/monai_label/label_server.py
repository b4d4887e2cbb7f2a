"""A MONAI Label server of one bundle in a scratch folder, with no way to the network or this repository."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests

START_LIMIT, INFER_LIMIT, TRAIN_LIMIT = 600, 600, 1800  # seconds; a busy machine takes most of them


class Unusable(Exception):
    """The bundle fails so early that the remaining checks have no meaning."""


def server_python() -> str:
    """The interpreter that has MONAI Label: of ``MONAI_LABEL_VENV``, else this one."""
    environment = os.environ.get("MONAI_LABEL_VENV")
    return str(Path(environment).absolute() / "bin" / "python") if environment else sys.executable


def server_environment() -> dict[str, str]:
    """No PYTHONPATH, so that only the bundle's folder and site-packages can be imported, and no way out."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "BUNDLE_DOWNLOAD_SRC")}
    proxies = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    offline = {
        **dict.fromkeys(proxies, "http://127.0.0.1:9"),
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }
    return {**environment, **offline, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


class Server:
    """A MONAI Label server of one bundle in a scratch folder; a context manager that ends what it started."""

    def __init__(self, bundle: Path, image: Path, scratch: Path, cases: int) -> None:
        self.name, self.scratch = bundle.name, scratch
        self.log = scratch / "server.log"
        self.work = scratch / "work"
        self.work.mkdir()
        self._run("apps", "--download", "--name", "monaibundle", "--output", str(scratch / "apps"))
        self.bundle = scratch / "apps" / "monaibundle" / "model" / bundle.name
        unwanted = shutil.ignore_patterns("eval", "__pycache__")
        shutil.copytree(bundle, self.bundle, symlinks=True, ignore=unwanted)
        (scratch / "studies").mkdir()
        suffix = "".join(image.suffixes[-2:]) if image.name.endswith(".gz") else image.suffix
        for case in range(cases):
            shutil.copyfile(image, scratch / "studies" / f"case_{case}{suffix}")

    def _run(self, *arguments: str) -> None:
        command = [server_python(), "-m", "monailabel.main", *arguments]
        done = subprocess.run(command, cwd=self.work, env=server_environment(), capture_output=True, encoding="utf-8")
        if done.returncode:
            raise Unusable(f"monailabel {arguments[0]} failed: {done.stderr.strip()[-2000:]}")

    def __enter__(self) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        # zoo_source ngc: the default one asks the network for an index even when the bundle is on the disk.
        confs = {"models": self.name, "zoo_source": "ngc", "sam2": "false"}
        command = [
            server_python(),
            "-m",
            "monailabel.main",
            "start_server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command += [
            "--app",
            str(self.scratch / "apps" / "monaibundle"),
            "--studies",
            str(self.scratch / "studies"),
        ]
        command += [part for key, value in confs.items() for part in ("--conf", key, value)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=self.work, env=server_environment(), stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self) -> None:
        end = time.monotonic() + START_LIMIT
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Unusable(f"the server ended with code {self.process.returncode}: {self.tail()}")
            try:
                self.info()
                return
            except (requests.ConnectionError, requests.HTTPError):
                time.sleep(0.5)
        raise Unusable(f"the server did not answer within {START_LIMIT} s: {self.tail()}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def info(self) -> dict[str, Any]:
        return self._ask("GET", "/info/", 30).json()

    def infer(self, case: str = "", upload: Path | None = None, output: str = "image", params: str = "{}") -> bytes:
        files = {"file": (upload.name, upload.read_bytes())} if upload else None
        query = {"output": output, **({"image": case} if case else {})}
        path, data = f"/infer/{self.name}", {"params": params}
        return self._ask("POST", path, INFER_LIMIT, params=query, files=files, data=data).content

    def put_label(self, case: str, label: Path) -> None:
        query, files = {"image": case, "tag": "final"}, {"label": (label.name, label.read_bytes())}
        self._ask("PUT", "/datastore/label", 60, params=query, files=files, data={"params": "{}"})

    def train(self) -> None:
        request = {"max_epochs": 1, "val_split": 0.5, "pretrained": True}
        self._ask("POST", f"/train/{self.name}", TRAIN_LIMIT, params={"run_sync": "true"}, json=request)

    def _ask(self, method: str, path: str, limit: float, **arguments: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False  # no proxy between this process and the loopback
            answer = session.request(method, self.url + path, timeout=limit, **arguments)
        if answer.status_code != 200:
            said = answer.text[:300]
            raise requests.HTTPError(f"{method} {path}: HTTP {answer.status_code}: {said}\n{self.tail()}")
        return answer
