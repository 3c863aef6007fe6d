"""Classifiers that are asked from outside: a command, or an HTTP endpoint; what is sent to them is taken down.

Both take rows of a table in the user's own units and columns, and answer with a class or with class probabilities for
each. They are what :class:`~netwright.explain.black_box.BlackBox` wraps.
"""

import csv
import io
import json
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from numpy.typing import NDArray

from netwright import checks

Row = Sequence[float | str]

_LARGEST_ANSWER = 64 * 2**20  # bytes
_PAUSE = 0.5  # seconds before the first repetition; each further one waits twice as long
_WORTH_REPEATING = frozenset((408, 425, 429, 500, 502, 503, 504))


@dataclass
class Sent:
    """What went out, and what became of it.

    Attributes:
        to: The command, or the address without user name, password and query.
        requests: How often it was asked, repetitions included.
        rows: Rows that were sent, repetitions included.
        bytes: Their size as they were sent.
        repeated: Requests that were repeated after a failure.
        seconds: Time of all requests.
    """

    to: str
    requests: int = 0
    rows: int = 0
    bytes: int = 0
    repeated: int = 0
    seconds: float = 0.0


class Command:
    r"""A command that reads rows as CSV with a header from standard input, and writes one line for each row.

    A line is a class, or the probabilities of all classes with commas between. The command runs once for every batch
    of rows, without a shell.

    Args:
        command: As typed in a terminal: ``"python predict.py --threshold 0.3"``.
        columns: Names of the columns.
        classes: Names of the classes, in the order of the probabilities.
        timeout: Seconds that a run may take.

    Attributes:
        sent: What went out so far.

    Raises:
        InputError: If the command cannot be run; when called, if it takes too long, ends with an error, or answers
            something else.

    Example:
        >>> model = Command("tail -n +2", columns=["answer"], classes=["no", "yes"])  # repeats the rows
        >>> model([["yes"], ["no"]])
        array([[0., 1.],
               [1., 0.]])
    """

    def __init__(self, command: str, columns: Sequence[str], classes: Sequence[str], timeout: float = 60.0) -> None:
        checks.positive("timeout", timeout)
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise checks.InputError(f"command {command!r} cannot be read: {error}") from error
        if not self._arguments:
            raise checks.InputError("the command must not be empty")
        self.columns, self.classes, self.timeout = tuple(columns), tuple(classes), timeout
        self.sent = Sent(command)

    def __call__(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Class probabilities ``(rows, classes)``."""
        text = _as_csv(self.columns, rows)
        self.sent.requests += 1
        self.sent.rows += len(rows)
        self.sent.bytes += len(text.encode())
        start = time.perf_counter()
        try:
            done = subprocess.run(  # noqa: S603 - running the user's command is what is asked for
                self._arguments, input=text, capture_output=True, encoding="utf-8", errors="replace",
                timeout=self.timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise checks.InputError(
                f"{self.sent.to!r} must answer {len(rows)} rows within {self.timeout:g} s; give it more time"
            ) from error
        except OSError as error:
            raise checks.InputError(f"{self.sent.to!r} cannot be run: {error.strerror}") from error
        finally:
            self.sent.seconds += time.perf_counter() - start
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
            raise checks.InputError(f"{self.sent.to!r} ended with exit code {done.returncode}: {last}")
        try:
            lines = [next(csv.reader([line]), []) for line in done.stdout.splitlines() if line.strip()]
        except csv.Error as error:
            raise checks.InputError(f"{self.sent.to!r} must answer with CSV: {error}") from error
        answers = [line[0].strip() if len(line) == 1 else line for line in lines]
        return as_probabilities(answers, len(rows), self.classes, f"{self.sent.to!r}")


class Endpoint:
    """An HTTP endpoint that is sent rows as JSON.

    It gets ``POST {"columns": [...], "instances": [[...], ...]}`` and answers ``{"predictions": [...]}``, or the list
    alone: for each row a class, or the probabilities of all classes. Redirections are refused, so that no row goes
    anywhere else; time-outs, broken connections and the statuses 408, 425, 429, 500, 502, 503, 504 are tried again.

    Args:
        address: Starts with ``http://`` or ``https://``.
        columns: Names of the columns.
        classes: Names of the classes, in the order of the probabilities.
        timeout: Seconds until a connection must stand, and until each part of an answer must come.
        retries: How often a failed request is repeated.
        headers: Sent along, such as ``{"Authorization": "Bearer …"}``.
        wait: Called with the seconds to wait before a repetition; for tests.

    Attributes:
        sent: What went out so far.

    Raises:
        InputError: If the address is none; when called, if there is no answer, or none that can be used.

    Example:
        >>> Endpoint("http://user:secret@127.0.0.1:8000/predict?key=1", ["age"], ["no", "yes"]).sent.to
        'http://127.0.0.1:8000/predict'
    """

    def __init__(
        self,
        address: str,
        columns: Sequence[str],
        classes: Sequence[str],
        timeout: float = 60.0,
        retries: int = 2,
        *,
        headers: Mapping[str, str] | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        checks.positive("timeout", timeout)
        checks.at_least("retries", retries, 0)
        self._address, self._headers, self._wait = address, dict(headers or {}), wait
        for name, value in self._headers.items():
            if not (value.isascii() and value.isprintable()):  # nothing of it is shown: it may be a secret
                raise checks.InputError(f"header {name!r} must be of printable ASCII characters alone")
        self.columns, self.classes, self.timeout, self.retries = tuple(columns), tuple(classes), timeout, retries
        self.sent = Sent(without_secrets(address))

    def __call__(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Class probabilities ``(rows, classes)``."""
        body = json.dumps({"columns": self.columns, "instances": [list(row) for row in rows]}).encode()
        text = self._ask(body, len(rows))
        try:
            answer = json.loads(text)
        except ValueError as error:
            raise checks.InputError(f"{self.sent.to} must answer with JSON, got {text[:80]!r}") from error
        if isinstance(answer, Mapping):
            answer = answer.get("predictions")
        if not isinstance(answer, list):
            checks.fail(f'{self.sent.to} must answer with a list, or {{"predictions": [...]}}', text[:80])
        return as_probabilities(answer, len(rows), self.classes, self.sent.to)

    def _ask(self, body: bytes, rows: int) -> str:
        for attempt in range(self.retries + 1):
            if attempt:
                self.sent.repeated += 1
                self._wait(_PAUSE * 2 ** (attempt - 1))
            self.sent.requests += 1
            self.sent.rows += rows
            self.sent.bytes += len(body)
            start = time.perf_counter()
            try:
                status, text = self._post(body)
            except requests.RequestException as error:
                failure = f"{type(error).__name__}"
                continue
            finally:
                self.sent.seconds += time.perf_counter() - start
            if status == requests.codes.ok:
                return text
            failure = f"status {status}: {text[:80]!r}"
            if status not in _WORTH_REPEATING:
                break
        raise checks.InputError(
            f"{self.sent.to} gave no answer to {rows} rows ({failure}; asked {attempt + 1} times, up to "
            f"{self.timeout:g} s each)"
        )

    def _post(self, body: bytes) -> tuple[int, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"} | self._headers
        deadline = time.monotonic() + self.timeout
        with requests.post(
            self._address, data=body, headers=headers, timeout=self.timeout, allow_redirects=False, stream=True,
            auth=_as_it_is if "Authorization" in self._headers else None,
        ) as response:  # fmt: skip
            if response.is_redirect:
                raise checks.InputError(
                    f"{self.sent.to} redirects to {urlsplit(response.headers['Location']).hostname}; rows are sent to "
                    "no other address than the one given"
                )
            content = bytearray()
            for part in response.iter_content(2**16):
                content += part
                if len(content) > _LARGEST_ANSWER:
                    raise checks.InputError(f"{self.sent.to} answers more than {_LARGEST_ANSWER // 2**20} MiB")
                if time.monotonic() > deadline:  # an endpoint that sends a byte now and then would never time out
                    raise requests.Timeout
            return response.status_code, content.decode(errors="replace")


def without_secrets(address: str) -> str:
    """An address without user name, password, query and fragment, as it may be shown.

    Raises:
        InputError: If it is no address.
    """
    try:
        parts = urlsplit(address)
        name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        host = name if parts.port is None else f"{name}:{parts.port}"
    except ValueError:  # its words may repeat a password
        raise checks.InputError("the address cannot be read: host or port are no such thing") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise checks.InputError("the address must start with http:// or https:// and name a host")
    return f"{parts.scheme}://{host}{parts.path}"


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep requests from replacing the header that was given by what ``.netrc`` or the address says."""
    return request


def as_probabilities(answers: Sequence[Any], rows: int, classes: Sequence[str], source: str) -> NDArray[np.float64]:
    """Answers, one a row, as probabilities ``(rows, classes)``: a class gets the probability 1.

    Args:
        answers: For each row a class (its name), or the probabilities of all classes.
        rows: How many there must be.
        classes: Names of the classes.
        source: Who answered, for errors.

    Raises:
        InputError: If there are more or fewer, a class is not known, or probabilities are none.

    Example:
        >>> as_probabilities(["b", [0.2, 0.8]], 2, ["a", "b"], "it")
        array([[0. , 1. ],
               [0.2, 0.8]])
    """
    if len(answers) != rows:
        checks.fail(f"{source} must give one answer for each of {rows} rows", f"{len(answers)} answers")
    number = {name: index for index, name in enumerate(classes)}
    found = np.zeros((rows, len(classes)))
    for index, answer in enumerate(answers):
        if isinstance(answer, list | tuple):
            found[index] = _as_row(answer, classes, source)
        elif str(answer) in number:
            found[index, number[str(answer)]] = 1.0
        else:
            hint = checks.did_you_mean(str(answer), classes)
            raise checks.InputError(f"{source} answers {str(answer)[:80]!r}, which is no class; {hint}")
    return found


def _as_row(answer: Sequence[Any], classes: Sequence[str], source: str) -> NDArray[np.float64]:
    try:
        row = np.array([float(value) for value in answer])
    except (TypeError, ValueError):
        row = np.empty(0)
    if row.shape != (len(classes),):
        checks.fail(f"{source} must give a class, or the probabilities of {len(classes)} classes", str(answer)[:80])
    return row


def _as_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


__all__ = ["Command", "Endpoint", "Sent", "as_probabilities", "without_secrets"]
