"""Models behind an endpoint: a real server, and one that does everything wrong."""

from __future__ import annotations

import base64
import fcntl
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mgsd_core.cli import main
from mgsd_core.prompts import instruction, parse_response, response_text
from mgsd_core.runtime.preprocess import ImageSpec
from mgsd_core.scenes import load_scenes
from sim.dataset import iter_episodes, write_dataset
from sim.request import DatasetRequest

pytest.importorskip("httpx2")

from mgsd_core.evaluation.endpoint import (
    MAX_BYTES,
    MAX_TEXT,
    Endpoint,
    EndpointError,
    ReplyError,
    read_reply,
    retry_after,
    shown_line,
)
from mgsd_core.evaluation.endpoint_run import EndpointRun

KEY = "sk-test-0123456789"
SCENES = 12
SIZE = 128  # of the drawn pictures: they are sent as they are


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_dataset(path, DatasetRequest([("frozenlake", 3)], "test", seed=0, count=SCENES))
    return path


@pytest.fixture(scope="module")
def perfect(data):
    """Scene number and right answer of every picture, by its pixels."""
    episodes = enumerate(iter_episodes(data, "test"))
    return {np.asarray(e.image).tobytes(): (i, response_text(e.state, e.plan)) for i, e in episodes}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


class Server:
    """A server that knows all answers; `misbehave(handler, scene, times)` may do otherwise.

    It returns True where it has dealt with the request, which is the `times`-th about `scene`.
    """

    def __init__(self, perfect):
        self.perfect = perfect
        self.misbehave = lambda handler, scene, times: False
        self.bodies, self.headers = [], []
        self.calls = Counter()  # by scene
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer._handle(self)

            def do_GET(self):
                outer.calls["GET"] += 1
                reply(self, 200, b"{}")

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def _handle(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        scene, text = self.perfect[pixels(body)]
        with self._lock:
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
            self.calls[scene] += 1
            times = self.calls[scene]
        if not self.misbehave(handler, scene, times):
            completion(handler, text)


def pixels(body):
    url = body["messages"][1]["content"][1]["image_url"]["url"]
    packed = base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)
    picture = Image.open(io.BytesIO(packed), formats=["PNG"])
    return np.asarray(picture.convert("RGB")).tobytes()


def reply(handler, status, data, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
    return True


def completion(handler, text, **more):
    told = {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        **more,
    }
    return reply(handler, 200, json.dumps(told).encode())


@pytest.fixture
def server(perfect):
    server = Server(perfect)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def _arguments(url, data, out, *more):
    arguments = ["evaluate", "--endpoint", url, "--endpoint-model", "some/model"]
    arguments += ["--data", str(data), "--out", str(out), "--picture-size", str(SIZE)]
    return [*arguments, *map(str, more)]


def _evaluate(server, data, out, *more):
    return main(_arguments(server.url, data, out, *more))


def _results(out):
    return json.loads((out / "results.json").read_text())


def _answers(out):
    return [json.loads(line) for line in (out / "answers.jsonl").read_bytes().splitlines()]


# --- a server as it should be -------------------------------------------------------------------


def test_an_endpoint_is_judged_as_other_models_are(server, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", KEY)
    options = ("--key-variable", "MY_KEY", "--extra", '{"top_p": 0.5, "max_tokens": 77}')
    prices = ("--price-in", "2", "--price-out", "10")
    assert _evaluate(server, data, tmp_path, *options, *prices, "--swap-images") == 0
    results = _results(tmp_path)
    assert results["macro"]["success"] == results["macro"]["state"] == 1.0
    assert results["families"]["frozenlake"]["levels"]["3"]["count"] == results["count"] == SCENES
    assert results["image_swapped"]["macro"]["success"] < 1.0
    assert (results["model"], results["input"], results["split"]) == ("some/model", "image", "test")
    # The other pictures' answers are known already: nothing was asked for twice.
    assert server.calls == dict.fromkeys(range(SCENES), 1)
    usage = results["usage"]
    assert (usage["calls"], usage["retries"]) == (SCENES, 0)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (100 * SCENES, 10 * SCENES)
    assert usage["cost"] == pytest.approx(SCENES * (100 * 2 + 10 * 10) / 1e6)
    assert results["prompts"]["style"] == "full"
    assert len(results["prompts"]["digest"]) == 64
    body = server.bodies[0]
    assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0, 77, 0.5)
    words = body["messages"][1]["content"][0]["text"]
    assert words == instruction("frozenlake", "full")
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    printed = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in printed.out + printed.err + written


def test_without_a_key_none_is_sent(server, data, tmp_path):
    assert _evaluate(server, data, tmp_path, "--limit", 1) == 0
    assert "Authorization" not in server.headers[0]
    assert server.bodies[0]["max_tokens"] >= 1024


def test_an_option_can_be_taken_away(server, data, tmp_path):
    extra = '{"temperature": null, "max_tokens": null, "max_completion_tokens": 900}'
    assert _evaluate(server, data, tmp_path, "--limit", 1, "--extra", extra) == 0
    assert set(server.bodies[0]) == {"model", "messages", "max_completion_tokens"}


def test_the_symbolic_state_can_be_asked_about_too(server, data, tmp_path):
    asked = []

    def handle(handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        asked.append(body["messages"][1]["content"])
        completion(handler, "<answer></answer>")

    server._handle = handle
    assert _evaluate(server, data, tmp_path, "--input", "both", "--limit", 2) == 0
    assert sum(isinstance(content, str) and "Holes" in content for content in asked) == 2
    assert {"symbolic", "modality_gap"} <= set(_results(tmp_path))


# --- one that is not ----------------------------------------------------------------------------


def _stall(handler):
    time.sleep(1.5)
    with suppress(OSError):  # nobody waits for it any more
        completion(handler, "too late")
    return True


def _trickle(handler):
    """A reply that is whole after 2 s, and never silent for long."""
    told = json.dumps({"choices": [{"message": {"content": "too late"}}]}).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(told) + 20))
    handler.end_headers()
    with suppress(OSError):
        for _ in range(20):
            handler.wfile.write(b" ")
            time.sleep(0.1)
        handler.wfile.write(told)
    return True


def _hang_up(handler):
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def _half(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    return _hang_up(handler)


def _raw(handler):
    handler.wfile.write(b"\x00\xff no HTTP at all\r\n\r\n")
    return _hang_up(handler)


FAULTS = {
    "500": lambda h: reply(h, 500, b"oh"),
    "503": lambda h: reply(h, 503, b'{"error": {"message": "loading"}}', Retry_After="0"),
    "408": lambda h: reply(h, 408, b""),
    "409": lambda h: reply(h, 409, b""),
    "stall": _stall,
    "trickle": _trickle,
    "hang up": _hang_up,
    "half": _half,
    "raw": _raw,
    "no JSON": lambda h: reply(h, 200, b"<html>\x1b[31m busy </html>"),
    "list": lambda h: reply(h, 200, b"[1]"),
    "no choices": lambda h: completion(h, "", choices=[]),
    "wrong types": lambda h: completion(h, "", choices=[{"message": "text"}]),
    "number": lambda h: completion(h, 7),
    "nested": lambda h: reply(h, 200, b"[" * 100_000),
    "large": lambda h: completion(h, "x" * (MAX_BYTES + 1)),
    "packed": lambda h: reply(h, 200, b"\x1f\x8b\x08 no gzip", Content_Encoding="gzip"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_by_chance_is_asked_again(fault, server, data, tmp_path):
    def misbehave(handler, scene, times):
        return scene == 1 and times == 1 and FAULTS[fault](handler)

    server.misbehave = misbehave
    assert _evaluate(server, data, tmp_path, "--limit", 3, "--timeout", 1) == 0
    assert server.calls == {0: 1, 1: 2, 2: 1}
    results = _results(tmp_path)
    assert results["macro"]["success"] == 1.0
    assert (results["usage"]["calls"], results["usage"]["retries"]) == (4, 1)
    assert sorted(answer["attempts"] for answer in _answers(tmp_path)) == [1, 1, 2]


def test_a_server_that_asks_for_time_is_given_it_by_all(server, data, tmp_path):
    seen = []

    def misbehave(handler, scene, times):
        seen.append(time.monotonic())
        first = len(seen) == 1
        return first and reply(handler, 429, b"slow down", Retry_After="1.5")

    server.misbehave = misbehave
    assert _evaluate(server, data, tmp_path, "--limit", 3, "--concurrency", 1) == 0
    assert seen[1] - seen[0] >= 1.5
    assert sum(server.calls.values()) == 4


def test_a_server_that_asks_for_too_much_time_is_not_waited_for(server, data, tmp_path, capsys):
    server.misbehave = lambda h, scene, _: scene == 0 and reply(h, 429, b"", Retry_After="86400")
    assert _evaluate(server, data, tmp_path, "--limit", 2) == 1
    assert server.calls == {0: 1, 1: 1}
    assert "86400" in capsys.readouterr().err


def test_what_has_no_answer_counts_as_failure_and_is_asked_again_next_time(
    server, data, tmp_path, capsys
):
    said = json.dumps({"error": {"message": "too\x1b[2J\nlarge" + 5000 * "!"}}).encode()

    def misbehave(handler, scene, times):
        if scene == 0:
            return reply(handler, 400, said)
        return scene == 1 and reply(handler, 500, b"")

    server.misbehave = misbehave
    options = ("--limit", 4, "--retries", 1)
    assert _evaluate(server, data, tmp_path, *options) == 1
    assert server.calls == {0: 1, 1: 2, 2: 1, 3: 1}
    results = _results(tmp_path)
    assert results["macro"]["success"] == 0.5
    assert {failed["scene"] for failed in results["failed"]} == {
        "frozenlake-3-test-0",
        "frozenlake-3-test-1",
    }
    assert (results["usage"]["calls"], results["usage"]["retries"]) == (5, 1)
    lines = (tmp_path / "responses_image.jsonl").read_text().splitlines()
    assert [json.loads(line)["failure"] for line in lines[:2]] == ["no answer"] * 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "too [2J large!" in last
    assert "\x1b" not in last
    assert len(last) < 500

    server.misbehave = lambda *_: False
    assert _evaluate(server, data, tmp_path, *options) == 0
    assert server.calls == {0: 2, 1: 3, 2: 1, 3: 1}
    results = _results(tmp_path)
    assert results["macro"]["success"] == 1.0
    assert results["failed"] == []
    assert results["usage"]["answers_kept"] == 2


def test_what_has_no_answer_fails_with_every_scene_that_is_shown_it(server, data, tmp_path):
    server.misbehave = lambda h, scene, times: scene == 0 and times == 1 and reply(h, 400, b"")
    options = ("--limit", 4, "--retries", 0, "--swap-images")
    assert _evaluate(server, data, tmp_path, *options) == 1
    results = _results(tmp_path)
    assert [failed["scene"] for failed in results["failed"]] == ["frozenlake-3-test-0"]
    for judged in (results, results["image_swapped"]):
        level = judged["families"]["frozenlake"]["levels"]["3"]
        assert sum(level["failures"]["no answer"].values()) == 1
    # A late answer would be in one of the two alone.
    assert server.calls == {0: 1, 1: 1, 2: 1, 3: 1}
    assert _evaluate(server, data, tmp_path, *options) == 0
    assert server.calls == {0: 2, 1: 1, 2: 1, 3: 1}
    results = _results(tmp_path)
    assert (results["macro"]["success"], results["failed"]) == (1.0, [])
    assert "no answer" not in json.dumps(results["image_swapped"])


def test_all_scenes_of_a_request_without_an_answer_are_named(server, data, tmp_path):
    server.misbehave = lambda h, scene, _: scene == 0 and reply(h, 400, b"no")
    scenes = load_scenes(data, "test", ImageSpec(SIZE, patch=1, merge=1)).part([0, 0, 1])
    run = EndpointRun(Endpoint(server.url, "some/model"), tmp_path)
    records = run.answer(replace(scenes, names=["one", "same", "other"]), "image")
    assert [record.failure for record in records] == ["no answer", "no answer", None]
    assert [failed["scene"] for failed in run.about()["failed"]] == ["one", "same"]
    assert server.calls == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("status", "headers"), [(401, {}), (404, {}), (307, {"Location": "/v1/elsewhere"})]
)
def test_what_is_wrong_for_every_request_ends_the_run(
    status, headers, server, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    said = json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode()
    server.misbehave = lambda h, *_: reply(h, status, said, **headers)
    assert _evaluate(server, data, tmp_path, "--concurrency", 1) == 2
    assert sum(server.calls.values()) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"the server says {status}: wrong key [key]" in error
    assert KEY not in error
    assert not (tmp_path / "results.json").exists()


def test_half_a_character_in_an_answer_spoils_nothing(server, data, tmp_path):
    said = b'{"choices": [{"message": {"content": "a\\ud800 <answer>R</answer>"}}]}'
    server.misbehave = lambda h, *_: reply(h, 200, said)
    for _ in range(2):  # the second time it is read from the file
        assert _evaluate(server, data, tmp_path, "--limit", 1) == 0
    lines = (tmp_path / "responses_image.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["text"] == "a? <answer>R</answer>"
    # A file that an earlier version left.
    answers = tmp_path / "answers.jsonl"
    answers.write_text(answers.read_text().replace("a?", "a\\ud800"))
    assert _evaluate(server, data, tmp_path, "--limit", 1) == 0
    assert sum(server.calls.values()) == 1


def test_a_server_that_is_gone_ends_the_run_and_nothing_is_lost(server, data, tmp_path, capsys):
    server.misbehave = lambda h, scene, _: scene >= 3 and _hang_up(h)
    options = ("--retries", 0, "--concurrency", 1)
    assert _evaluate(server, data, tmp_path, *options) == 2
    assert "8 requests in a row" in capsys.readouterr().err
    assert sum(server.calls.values()) == 3 + 8
    assert len(_answers(tmp_path)) == 3
    server.misbehave = lambda *_: False
    assert _evaluate(server, data, tmp_path, *options) == 0
    assert all(server.calls[scene] == 1 for scene in range(3))


def test_where_nobody_listens_there_are_no_results(data, tmp_path, capsys):
    url = f"http://127.0.0.1:{_free_port()}/v1"
    assert main(_arguments(url, data, tmp_path, "--limit", 2, "--retries", 0)) == 2
    assert "ConnectError" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


# --- runs that end early ------------------------------------------------------------------------


@contextmanager
def _running(server, data, out, answers):
    """A run in a process of its own that has written `answers` answers."""
    server.misbehave = lambda *_: time.sleep(0.15)
    program = "import sys; from mgsd_core.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program]
    command += _arguments(server.url, data, out, "--concurrency", 2)
    # A shell's background jobs, and what they start, pass over SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 60
        file = out / "answers.jsonl"
        # What the server has sent need not have been read yet.
        while not file.exists() or file.read_bytes().count(b"\n") < answers:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_that_was_killed_goes_on_and_repeats_no_call(server, data, tmp_path):
    with _running(server, data, tmp_path, 5) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    have = {int(answer["scene"].rpartition("-")[2]) for answer in _answers(tmp_path)}
    assert 5 <= len(have) < SCENES
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write(b'{"scene": "frozenlake-3-test-9", "requ')
    before = Counter(server.calls)
    assert _evaluate(server, data, tmp_path) == 0
    again = server.calls - before
    assert again == {scene: 1 for scene in range(SCENES) if scene not in have}
    assert _results(tmp_path)["macro"]["success"] == 1.0
    assert len(_answers(tmp_path)) == SCENES
    total = sum(server.calls.values())
    assert _evaluate(server, data, tmp_path) == 0
    assert sum(server.calls.values()) == total


def test_ctrl_c_ends_a_run_in_one_line_and_keeps_its_answers(server, data, tmp_path):
    with _running(server, data, tmp_path, 4) as process:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
        assert process.returncode == 130
    assert error.splitlines()[-1] == "mgsd evaluate: interrupted"
    assert "Traceback" not in error
    assert 4 <= len(_answers(tmp_path)) < SCENES
    assert not (tmp_path / "results.json").exists()


def test_answers_of_another_model_are_kept_apart(server, data, tmp_path):
    assert _evaluate(server, data, tmp_path, "--limit", 2) == 0
    for other in (
        ("--endpoint-model", "other"),
        ("--extra", '{"seed": 1}'),
        ("--picture-size", 64),
    ):
        before = sum(server.calls.values())
        if other[0] == "--picture-size":  # smaller pictures, which the server does not know
            server.perfect = _Any(server.perfect)
        assert _evaluate(server, data, tmp_path, "--limit", 2, *other) == 0
        assert sum(server.calls.values()) == before + 2
    before = sum(server.calls.values())
    assert _evaluate(server, data, tmp_path, "--limit", 2) == 0
    assert sum(server.calls.values()) == before
    assert _results(tmp_path)["macro"]["success"] == 1.0


class _Any(dict):
    def __missing__(self, key):
        return 0, "I do not know."


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON",
        b"[]",
        b'{"request": 1}',
        b'{"request": "a", "text": "b"}',
        b'{"request": "a", "text": "b", "prompt_tokens": true, "completion_tokens": null, '
        b'"cut": false, "seconds": 1, "attempts": 1}',
    ],
)
def test_a_damaged_file_of_answers_is_refused(line, server, data, tmp_path, capsys):
    assert _evaluate(server, data, tmp_path, "--limit", 1) == 0
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    content = path.read_bytes()
    assert _evaluate(server, data, tmp_path, "--limit", 2) == 2
    assert "answers.jsonl, line 2" in capsys.readouterr().err
    assert path.read_bytes() == content
    assert sum(server.calls.values()) == 1


def test_two_runs_do_not_write_one_file(server, data, tmp_path, capsys):
    with (tmp_path / "answers.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert _evaluate(server, data, tmp_path, "--limit", 1) == 2
    assert "another run" in capsys.readouterr().err
    assert not server.calls


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--endpoint", "127.0.0.1:8000"], "http"),
        (["--endpoint", "file:///etc"], "http"),
        (["--endpoint", f"http://me:{KEY}@127.0.0.1/v1"], "password"),
        (["--endpoint", f"http://127.0.0.1/v1?key={KEY}"], "query"),
        (["--concurrency", "0"], "concurrency"),
        (["--timeout", "nan"], "timeout"),
        (["--retries", "-1"], "retries"),
        (["--extra", "{"], "--extra"),
        (["--extra", "[1]"], "--extra"),
        (["--extra", '{"model": "other"}'], "model"),
        (["--extra", '{"top_p": NaN}'], "JSON"),
        (["--price-in", "1"], "belong together"),
        (["--price-in", "-1", "--price-out", "1"], "at least 0"),
        (["--key-variable", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (["--picture-size", "100000"], "4096 px"),
        (["--endpoint", "http://127.0.0.1:99999/v1"], "port"),
    ],
)
def test_bad_arguments_are_one_line(arguments, says, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(_arguments("http://127.0.0.1:9/v1", data, out, *arguments)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert KEY not in error
    assert not out.exists()


def test_a_key_that_cannot_be_sent_is_not_shown(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX: 1")
    assert main(_arguments("http://127.0.0.1:9/v1", data, tmp_path)) == 2
    assert KEY not in capsys.readouterr().err
    assert KEY not in repr(Endpoint("http://127.0.0.1/v1", "m", KEY))


def test_the_address_may_be_that_of_the_completions():
    assert Endpoint("http://h/v1/chat/completions", "m").url == "http://h/v1"
    with pytest.raises(EndpointError, match="name"):
        Endpoint("http://h/v1", "")


# --- what servers say ---------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_message = st.fixed_dictionaries({}, optional={"content": _json, "role": _json})
_choice = st.fixed_dictionaries({}, optional={"message": _message | _json, "finish_reason": _json})
_usage = st.fixed_dictionaries({}, optional={"prompt_tokens": _json, "completion_tokens": _json})
_reply = st.fixed_dictionaries(
    {}, optional={"choices": st.lists(_choice) | _json, "usage": _usage | _json}
)


@given(st.binary() | (_reply | _json).map(lambda value: json.dumps(value).encode()))
def test_any_reply_is_read_or_refused(data):
    try:
        found = read_reply(data)
    except ReplyError:
        return
    assert isinstance(found.text, str)
    for count in (found.prompt_tokens, found.completion_tokens):
        assert count is None or (type(count) is int and count >= 0)
    json.dumps(found.text).encode()


def test_replies_in_the_forms_that_servers_have():
    def said(message, **more):
        return read_reply(json.dumps({"choices": [{"message": message, **more}]}).encode())

    assert said({"content": "a"}).text == "a"
    assert said({"content": None, "refusal": "no"}).text == ""
    assert said({"content": [{"type": "text", "text": "a"}, {"text": "b"}]}).text == "ab"
    assert said({"content": "a"}, finish_reason="length").cut
    long = said({"content": "x" * (MAX_TEXT + 9)})
    assert (len(long.text), long.cut) == (MAX_TEXT, True)
    assert said({"content": "a"}).prompt_tokens is None


@pytest.mark.parametrize("word", ["Size ", "(0,", "<answer>", "<answer>L D ", "\x00", "\ud800"])
def test_the_longest_answer_is_judged_in_time(word):
    text = (word * MAX_TEXT)[:MAX_TEXT]
    begin = time.monotonic()
    for family in ("frozenlake", "maze", "minibehaviour"):
        parse_response(text, family)
    assert time.monotonic() - begin < 10


@given(st.text())
def test_what_is_printed_is_one_harmless_line(text):
    shown = shown_line(text * 50)
    assert shown.isprintable()
    assert len(shown) <= 201


@given(st.text() | st.from_regex(r"[0-9.]+", fullmatch=True))
def test_any_retry_after_is_a_wait_or_none(value):
    wait = retry_after(value)
    assert wait is None or wait >= 0


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("3") == 3
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0
    assert retry_after("Fri, 31 Dec 9999 23:59:59 GMT") > 1e9
    assert retry_after("-3") is retry_after("soon") is retry_after(None) is None


# --- a real server ------------------------------------------------------------------------------


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """URL and directory of a small model that `transformers serve` serves."""
    needs = ("transformers", "fastapi", "uvicorn", "openai")
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    from small_llava import write_small_llava

    model = write_small_llava(tmp_path_factory.mktemp("served") / "llava")
    port = _free_port()
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("log") / "serve.txt"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=offline, cwd=model.parent
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"transformers serve did not start: {log.read_text()[-2000:]}")
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_real_server_is_told_picture_and_prompt(served, data, tmp_path):
    url, model = served
    arguments = _arguments(url, data, tmp_path, "--limit", 4, "--extra", '{"max_tokens": 24}')
    arguments[arguments.index("some/model")] = str(model)
    assert main([*arguments, "--concurrency", "2"]) == 0
    results = _results(tmp_path)
    assert results["count"] == 4
    assert results["usage"]["calls"] == 4
    assert results["usage"]["answers_without_usage"] == 0
    texts = {answer["scene"]: answer["text"] for answer in _answers(tmp_path)}
    episodes = list(iter_episodes(data, "test"))[:4]
    expected = _generated(model, [np.asarray(e.image) for e in episodes])
    assert texts == {
        f"frozenlake-3-test-{e.seed}": t for e, t in zip(episodes, expected, strict=True)
    }
    assert len(set(expected)) == 4  # so the right pictures were sent


def _generated(path, pictures):
    """What the model says when transformers is asked without a server."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from mgsd_core.prompts import student_prompt

    prompt = student_prompt("frozenlake", "full")
    model = LlavaForConditionalGeneration.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    texts = []
    for picture in pictures:
        user = [{"type": "text", "text": prompt.user}]
        user += [{"type": "image", "image": Image.fromarray(picture)}]
        system = [{"type": "text", "text": prompt.system}]
        inputs = processor.apply_chat_template(
            [{"role": "system", "content": system}, {"role": "user", "content": user}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.decode(new, skip_special_tokens=True))
    return texts


def test_a_real_server_says_what_is_wrong(served, data, tmp_path, capsys):
    arguments = _arguments(served[0], data, tmp_path, "--limit", 1, "--retries", 0)
    assert main(arguments) == 2  # it serves another model
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the server says 400" in error
    assert "some/model" in error
