"""Profiles in Hugging Face repositories: the real client, its real cache, and a server on this machine."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import freeloc
from freeloc.errors import ProfileError
from freeloc.probing import Sensitivity
from freeloc.probing.probe import probe
from freeloc.profile import hub
from freeloc.tiny.model import load_transformer
from freeloc.tiny.synthetic import prompt_embeds

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OWNER = "somebody/profile"


class Repository(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does for the files of one repository's main branch."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        prefix, _, name = self.path.rpartition("/")
        repository, _, revision = prefix.strip("/").partition("/resolve/")
        if repository != OWNER:
            self._refuse("RepoNotFound")
        elif revision not in ("main", "v1", COMMIT):
            self._refuse("RevisionNotFound")
        elif not (self.folder / name).is_file():
            self._refuse("EntryNotFound")
        else:
            content = (self.folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{name}-{len(content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that somebody who probed the tiny model would upload."""
    transformer, folder = load_transformer(), tmp_path_factory.mktemp("shared")

    def run(prompt: str) -> None:
        noise = torch.randn(1, 3, 24, 20, 28, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            transformer(noise, torch.full((1,), 900.0), prompt_embeds([prompt]))

    found = probe(transformer, run, prompts=["red ring fast"], profile="tiny-wan")
    found.to_profile(folder / hub.PROFILE_FILE)
    return folder


@pytest.fixture
def server(shared: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the requests it received."""
    handler = type("Handler", (Repository,), {"folder": shared, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}", handler.asked
        http_server.shutdown()


class Client:
    """A new process with an empty cache of its own, as the client reads its settings when it is imported."""

    def __init__(self, cache: Path, endpoint: str) -> None:
        measured = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}
        self.environment = {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "PATH": "", "HOME": str(cache), **measured}

    def load(self, name: str, offline: bool = False) -> dict[str, object]:
        script = (
            "import sys, json, freeloc\n"
            "from freeloc.profile.files import measurements_path\n"
            "try:\n"
            "    profile, path = freeloc.load_profile(sys.argv[1]), measurements_path(sys.argv[1])\n"
            "    print(json.dumps([profile.model_dump(mode='json'), str(path)]))\n"
            "except freeloc.errors.ProfileError as error:\n"
            "    print(json.dumps(str(error)))\n"
        )
        environment = self.environment | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        command = [sys.executable, "-c", script, name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        return json.loads(done.stdout)


def test_from_the_network_once_and_then_from_the_cache(
    server: tuple[str, list[str]], shared: Path, tmp_path: Path
) -> None:
    endpoint, asked = server
    client = Client(tmp_path, endpoint)
    profile, measurements = client.load(OWNER)
    assert profile == freeloc.load_profile(shared / hub.PROFILE_FILE).model_dump(mode="json")
    assert Sensitivity.load(measurements).depths == ["local"]
    assert f"GET /{OWNER}/resolve/{COMMIT}/{hub.PROFILE_FILE}" in asked or any("GET" in line for line in asked)
    asked.clear()
    assert client.load(OWNER, offline=True) == [profile, measurements]
    assert asked == []
    assert client.load(f"{OWNER}@v1") == [profile, measurements]
    assert any("/resolve/v1/" in line for line in asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody/profile", "there is no such repository, or it is private: check its name, or run 'hf auth login'"),
        (f"{OWNER}@v9", "it has no revision 'v9'"),
    ],
)
def test_a_missing_repository_or_file(server: tuple[str, list[str]], tmp_path: Path, name: str, words: str) -> None:
    message = Client(tmp_path, server[0]).load(name)
    assert words in message
    assert f"'{name}'" in message
    assert "If you meant a file, give its whole path, ending in .json" in message


@pytest.mark.slow
def test_a_repository_without_a_profile(server: tuple[str, list[str]], shared: Path, tmp_path: Path) -> None:
    away = (shared / hub.PROFILE_FILE).rename(shared / "away.json")
    try:
        assert "it has no file freeloc-profile.json" in Client(tmp_path, server[0]).load(OWNER)
    finally:
        away.rename(shared / hub.PROFILE_FILE)


@pytest.mark.slow
def test_a_profile_without_its_measurements(server: tuple[str, list[str]], shared: Path, tmp_path: Path) -> None:
    away = (shared / hub.MEASUREMENTS_FILE).rename(shared / "away.safetensors")
    try:
        profile, measurements = Client(tmp_path, server[0]).load(OWNER)
    finally:
        away.rename(shared / hub.MEASUREMENTS_FILE)
    assert profile == freeloc.load_profile(shared / hub.PROFILE_FILE).model_dump(mode="json")
    assert measurements == "None"


@pytest.mark.slow
def test_offline_and_never_loaded(tmp_path: Path) -> None:
    message = Client(tmp_path, "http://127.0.0.1:9").load(OWNER, offline=True)
    assert "it is not in the local cache, and the network cannot be reached or is switched off" in message


def test_a_file_of_that_path_comes_first(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somebody").mkdir()
    (tmp_path / OWNER).write_bytes((shared / hub.PROFILE_FILE).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert freeloc.load_profile(OWNER).model.layers == 8


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ProfileError, match=r"requires huggingface_hub \(.*\): pip install \"freeloc\[hub\]\""):
        freeloc.load_profile(OWNER)


@pytest.mark.parametrize(
    "name", ["../up", "a/../b", "a/b/c", "/a/b", "a/b@", "a/b@../c", "-a/b", "a b/c", "a/b\n", "é/b"]
)
def test_names_that_are_no_repositories(name: str) -> None:
    assert not hub.is_repository(name)
    with pytest.raises(ProfileError, match="expected a repository as owner/name"):
        hub.download(name)
