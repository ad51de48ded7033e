"""The page to try a model: in a browser, and refusing whoever is not the page."""

import http.client
import re
import threading

import orjson
import pytest

from finetune.models import open_model
from finetune.use import demo
from tests.finetune.toys import config_file, finetune
from tests.launch.chromium import dump, needs_chromium


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert finetune(config_file(folder, epochs=1)) == 0
    made = demo.make_server(open_model(folder / "run/best"), 0)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def ask(server, method="GET", path="/", body=b"", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    return answer.status, answer.read()


def token_of(server):
    return re.search(rb'"X-Token": "([\w-]+)"', ask(server)[1])[1].decode()


def test_the_model_answers_the_page_alone(server):
    text = orjson.dumps({"text": "w1 purr w2"})
    status, body = ask(server, "POST", "/predict", text, X_Token=token_of(server))
    assert status == 200
    said = orjson.loads(body)
    assert said["predicted"] in {"cat", "cow", "dog"}
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert ask(server, "POST", "/predict", text, X_Token="wrong")[0] == 403
    assert ask(server, "POST", "/predict", text)[0] == 403
    assert ask(server, Host="evil.example")[0] == 403
    assert ask(server, path="/etc/passwd")[0] == 404
    long = b'{"text": "' + b"a" * (1 << 20) + b'"}'
    assert ask(server, "POST", "/predict", long, X_Token=token_of(server))[0] == 413


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"text": " "}', b"'text' is empty"),
        (b"{}", b"no key 'text'"),
        (b"[]", b"expected a JSON object"),
        (b"{", b"expected a JSON object"),
    ],
)
def test_what_can_t_be_read_is_told(server, body, told):
    status, answer = ask(server, "POST", "/predict", body, X_Token=token_of(server))
    assert status == 400
    assert told in answer


@needs_chromium
def test_a_browser_shows_the_label(server, tmp_path):
    handler = server.RequestHandlerClass
    typed = (
        "<script>form.elements.text.value = 'w1 <b>purr</b> purr'; form.requestSubmit()</script>"
    )
    expected = handler.answers.answer({"text": "w1 <b>purr</b> purr"})
    before, handler.html = handler.html, handler.html + typed.encode()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        shown = dump(url, tmp_path / "profile", "--virtual-time-budget=8000")
    finally:
        handler.html = before
    answer = re.search(r'<p id="answer"[^>]*>(.*?)</p>', shown)
    assert answer[1] == expected["predicted"]
    shares = re.findall(r"([\d.]+) %</span>", shown)
    values = sorted(expected["probabilities"].values(), reverse=True)
    assert shares == [f"{100 * value:.1f}" for value in values]
