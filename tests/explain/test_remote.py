"""Commands and endpoints that answer: what is sent, what is tried again, and what is refused."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from netwright.checks import InputError
from netwright.explain.remote import Command, Endpoint, as_probabilities, without_secrets

COLUMNS, CLASSES = ("age", "home"), ("no", "yes")
ROWS = [[37.0, "own"], [12.5, "rent, with a comma"]]


def script(text: str) -> str:
    return f"{sys.executable} -c '{text}'"


class Server:
    """Answers what it is told to, and keeps what it got."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes, dict[str, str]]] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.pause = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((dict(self.headers), body))
                time.sleep(outer.pause)
                status, text, headers = outer.answers.pop(0)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/predict?key=secret"

    def will_answer(self, status: int, value: object = "", **headers: str) -> None:
        self.answers.append((status, value if isinstance(value, bytes) else json.dumps(value).encode(), headers))


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.http.shutdown()
    thread.join()
    found.http.server_close()


def test_a_command_gets_csv_and_its_classes_become_probabilities() -> None:
    text = (
        "import csv, sys; rows = list(csv.DictReader(sys.stdin)); "
        'print("\\n".join("yes" if float(r["age"]) > 20 and r["home"] == "own" else "0.75,0.25" for r in rows))'
    )
    command = Command(script(text), COLUMNS, CLASSES)
    np.testing.assert_array_equal(command(ROWS), [[0, 1], [0.75, 0.25]])
    assert (command.sent.requests, command.sent.rows) == (1, 2)
    assert command.sent.bytes == len(b'age,home\n37.0,own\n12.5,"rent, with a comma"\n')


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (script('raise SystemExit("no such model")'), "exit code 1: no such model"),
        (script("import time; time.sleep(9)"), "within 0.3 s"),
        (script('print("yes")'), "one answer for each of 2 rows, got 1 answers"),
        (script('print("yes\\nyess")'), "'yess', which is no class; did you mean 'yes'"),
        (script('print("1,2,3\\n1,2,3")'), "the probabilities of 2 classes"),
        (script('import sys; sys.stdout.buffer.write(b"\\xff\\nno")'), "which is no class"),
        (script('print("x" * 200000)'), "must answer with CSV"),
        ("/no/such/program", "cannot be run: No such file"),
    ],
)
def test_what_a_command_does_wrong_is_said(command: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Command(command, COLUMNS, CLASSES, timeout=0.3 if "sleep" in command else 20)(ROWS)


@pytest.mark.parametrize("command", ["", "'unfinished"])
def test_a_command_that_is_none_is_refused(command: str) -> None:
    with pytest.raises(InputError, match="command"):
        Command(command, COLUMNS, CLASSES)


def test_an_endpoint_gets_json(server: Server) -> None:
    server.will_answer(200, {"predictions": ["yes", [0.9, 0.1]]})
    endpoint = Endpoint(server.address, COLUMNS, CLASSES, headers={"Authorization": "Bearer abc"})
    np.testing.assert_array_equal(endpoint(ROWS), [[0, 1], [0.9, 0.1]])
    headers, body = server.got[0]
    assert json.loads(body) == {"columns": list(COLUMNS), "instances": ROWS}
    assert headers["Authorization"] == "Bearer abc"
    assert endpoint.sent.bytes == len(body)
    assert "secret" not in endpoint.sent.to


def test_what_may_pass_is_tried_again_and_counted(server: Server) -> None:
    server.will_answer(503)
    server.will_answer(429)
    server.will_answer(200, ["no", "no"])
    waits: list[float] = []
    endpoint = Endpoint(server.address, COLUMNS, CLASSES, wait=waits.append)
    endpoint(ROWS)
    assert waits == [0.5, 1.0]
    assert (endpoint.sent.requests, endpoint.sent.repeated, endpoint.sent.rows) == (3, 2, 6)


def test_retries_end(server: Server) -> None:
    for _ in range(3):
        server.will_answer(500)
    with pytest.raises(InputError, match=r"status 500.*asked 3 times"):
        Endpoint(server.address, COLUMNS, CLASSES, wait=lambda _: None)(ROWS)
    assert len(server.got) == 3


def test_a_refusal_is_not_tried_again(server: Server) -> None:
    server.will_answer(401, "who are you?")
    with pytest.raises(InputError, match=r"status 401.*who are you.*asked 1 times"):
        Endpoint(server.address, COLUMNS, CLASSES, wait=lambda _: None)(ROWS)


def test_rows_do_not_follow_a_redirection(server: Server) -> None:
    server.will_answer(307, "", Location="http://elsewhere.example/")
    with pytest.raises(InputError, match=r"redirects to elsewhere\.example"):
        Endpoint(server.address, COLUMNS, CLASSES)(ROWS)
    assert len(server.got) == 1


def test_a_slow_endpoint_times_out(server: Server) -> None:
    server.pause = 0.4
    server.will_answer(200, ["no", "no"])
    with pytest.raises(InputError, match=r"Timeout.*up to 0.1 s each"):
        Endpoint(server.address, COLUMNS, CLASSES, timeout=0.1, retries=0)(ROWS)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>", "must answer with JSON"),
        ({"labels": []}, "must answer with a list"),
        (["no"], "one answer for each of 2 rows"),
        ([[1, "x"], "no"], "the probabilities of 2 classes"),
        ([None, "no"], "which is no class"),
    ],
)
def test_answers_that_cannot_be_used(server: Server, answer: object, message: str) -> None:
    server.will_answer(200, answer)
    with pytest.raises(InputError, match=message):
        Endpoint(server.address, COLUMNS, CLASSES)(ROWS)


def test_an_endless_answer_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netwright.explain.remote._LARGEST_ANSWER", 1000)
    server.will_answer(200, b"x" * 5000)
    with pytest.raises(InputError, match="answers more than"):
        Endpoint(server.address, COLUMNS, CLASSES)(ROWS)


def test_nobody_listens() -> None:
    with pytest.raises(InputError, match=r"ConnectionError.*asked 2 times"):
        Endpoint("http://127.0.0.1:9/", COLUMNS, CLASSES, retries=1, wait=lambda _: None)(ROWS)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "predict", "http://", "ftp://a/b", "http://[x/"])
def test_only_addresses_of_the_web(address: str) -> None:
    with pytest.raises(InputError, match="address"):
        Endpoint(address, COLUMNS, CLASSES)


@pytest.mark.parametrize("address", ["me:secret@host/x?key=secret", "http://me:secret/1@host/", "ftp://a/?key=secret"])
def test_an_address_that_is_none_is_not_repeated(address: str) -> None:
    with pytest.raises(InputError, match="the address") as caught:
        Endpoint(address, COLUMNS, CLASSES)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["secret€", "secret\n"])
def test_a_token_that_no_header_can_hold(token: str) -> None:
    with pytest.raises(InputError, match="header 'Authorization' must be of printable ASCII") as caught:
        Endpoint("http://host/", COLUMNS, CLASSES, headers={"Authorization": f"Bearer {token}"})
    assert "secret" not in str(caught.value)


def test_the_token_is_sent_whatever_netrc_says(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.will_answer(200, ["no", "no"])
    Endpoint(server.address, COLUMNS, CLASSES, headers={"Authorization": "Bearer abc"})(ROWS)
    assert server.got[0][0]["Authorization"] == "Bearer abc"


def test_addresses_are_shown_without_secrets() -> None:
    assert without_secrets("https://me:pass@host:444/a?token=1#b") == "https://host:444/a"
    assert without_secrets("http://[::1]:8000/a") == "http://[::1]:8000/a"


def test_no_rows() -> None:
    assert as_probabilities([], 0, CLASSES, "it").shape == (0, 2)
