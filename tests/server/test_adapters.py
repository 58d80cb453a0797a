"""Adapters on every way in, loaded and unloaded while others are answered, through the official
client against a real server.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from qwenkit.config import ModelConfig
from qwenkit.io.hub import ASSETS
from qwenkit.llm import LLM
from qwenkit.model.adapter import WEIGHTS_NAME
from qwenkit.server import adapters
from qwenkit.server.service import Service

MODEL = "tiny-instruct"
ASK: Any = [{"role": "user", "content": "What is 12 + 30?"}]
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ADMIN = "sk-admin-0123456789"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_adapter: Callable[..., Path]) -> Path:
    """A folder with the adapters `one` and `two`; beside it, outside, `secret`."""
    root = tmp_path_factory.mktemp("adapters") / "root"
    config = ModelConfig.from_dict(json.loads((ASSETS / MODEL / "config.json").read_text()))
    for seed, place in enumerate(("one", "two", "../secret")):
        write_adapter(root / place, config, seed=seed, size=0.2)
    return root


@pytest.fixture(scope="module")
def server(live_of: Callable[..., Any], root: Path, key: str) -> Any:
    keys = root.parent / "admin"
    keys.write_text(f"{ADMIN} boss\n")
    return live_of(
        "--lora", f"one={root / 'one'}", "--lora-root", str(root), "--admin-key-file", str(keys),
        "--max-loras", "4", key=key,
    )  # fmt: skip


@pytest.fixture
def api(server: Any, key: str) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def boss(server: Any) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {ADMIN}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        yield client
        for card in client.get("/v1/models").json()["data"]:
            if card["id"] not in (MODEL, "one"):
                client.post(UNLOAD, json={"lora_name": card["id"]})


def said(api: OpenAI, model: str, **more: Any) -> str:
    answer = api.chat.completions.create(
        model=model, messages=ASK, max_tokens=24, temperature=0, **more
    )
    assert answer.model == model
    return answer.choices[0].message.content or ""


def test_every_way_in_takes_the_name(api: OpenAI, root: Path) -> None:
    with LLM(MODEL) as llm:
        llm.adapters.load("one", root / "one")
        want = llm.chat(ASK, max_tokens=24, temperature=0, adapter="one").text
        plain = llm.chat(ASK, max_tokens=24, temperature=0).text
        vector = llm.embed(["a b c"], adapter="one").vectors[0].tolist()
        raw = llm.generate("12 + 30 =", max_tokens=8, temperature=0, adapter="one").text
        (scores,) = llm.scorer.score(["12 + 30 ="], adapter="one")
    assert want != plain
    assert said(api, "one") == want and said(api, MODEL) == plain
    pieces = api.chat.completions.create(
        model="one", messages=ASK, max_tokens=24, temperature=0, stream=True
    )
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == want
    response = api.responses.create(
        model="one", input="What is 12 + 30?", max_output_tokens=24, temperature=0
    )
    assert response.output_text == want and response.model == "one"
    text = api.completions.create(model="one", prompt="12 + 30 =", max_tokens=8, temperature=0)
    assert text.choices[0].text == raw
    text = api.completions.create(
        model="one", prompt="12 + 30 =", max_tokens=0, echo=True, logprobs=0
    )
    assert text.choices[0].logprobs and text.choices[0].logprobs.token_logprobs
    likely = text.choices[0].logprobs.token_logprobs[1:]
    assert likely == pytest.approx(scores.logprobs.tolist(), abs=0.02)
    found = api.embeddings.create(model="one", input="a b c").data[0].embedding
    assert found == pytest.approx(vector, abs=0.02)
    assert found != pytest.approx(
        api.embeddings.create(model=MODEL, input="a b c").data[0].embedding, abs=0.02
    )
    body = {"model": "one", "messages": ASK, "max_tokens": 24, "temperature": 0}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = io.BytesIO(json.dumps(row).encode())
    file = api.files.create(file=("in.jsonl", lines), purpose="batch")
    batch = api.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status != "completed":
        time.sleep(0.05)
        batch = api.batches.retrieve(batch.id)
    assert batch.output_file_id is not None
    record = json.loads(api.files.content(batch.output_file_id).read())
    assert record["response"]["body"]["choices"][0]["message"]["content"] == want


def test_the_list_of_models(api: OpenAI) -> None:
    cards: Any = {card.id: card for card in api.models.list()}
    assert list(cards) == [MODEL, "one"]
    assert (cards[MODEL].parent, cards["one"].parent) == (None, MODEL)
    one: Any = api.models.retrieve("one")
    assert (one.parent, one.root, one.id) == (MODEL, MODEL, "one")


def test_the_first_lines_name_them(server: Any, root: Path) -> None:
    deadline = time.monotonic() + 10
    while f"adapter one, from {root / 'one'}\n" not in server.log:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.01)


def test_the_metrics_name_them(server: Any, api: OpenAI, boss: httpx.Client, key: str) -> None:
    """vLLM's entry: the names of those that requests run or wait with, at what time."""
    pattern = (
        r'^qwenkit:lora_requests_info\{max_lora="4",running_lora_adapters="(.*)",'
        r'waiting_lora_adapters="(.*)"\} (\S+)$'
    )

    def told() -> tuple[str, str]:
        page = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {key}"}).text
        assert "# TYPE qwenkit:lora_requests_info gauge" in page
        found = re.search(pattern, page, flags=re.M)
        assert found and abs(float(found[3]) - time.time()) < 60
        return found[1], found[2]

    def wait(running: str, waiting: str = "") -> None:
        deadline = time.monotonic() + 30
        while (found := told()) != (running, waiting):
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    wait("")
    boss.post(LOAD, json={"lora_name": "two", "lora_path": "two"})
    options: Any = {"max_tokens": 1500, "stream": True, "extra_body": {"ignore_eos": True}}
    with ExitStack() as streams:
        for name in ("two", "one", MODEL):
            stream = api.chat.completions.create(model=name, messages=ASK, **options)
            next(iter(streams.enter_context(stream)))
        wait("one,two")
        boss.post(UNLOAD, json={"lora_name": "two"})
        wait("one")
    wait("")


def test_loading_and_unloading(api: OpenAI, boss: httpx.Client, root: Path) -> None:
    with pytest.raises(openai.NotFoundError):
        said(api, "two")
    answer = boss.post(LOAD, json={"lora_name": "two", "lora_path": "two"})
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["parent"]) == ("two", MODEL)
    assert [card.id for card in api.models.list()] == [MODEL, "one", "two"]
    first = said(api, "two")
    assert first not in (said(api, MODEL), said(api, "one"))
    answer = boss.post(UNLOAD, json={"lora_name": "two"})
    assert answer.json() == {"id": "two", "object": "model", "deleted": True}
    with pytest.raises(openai.NotFoundError) as caught:
        said(api, "two")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    # The same name for another one: nothing of the first comes back from the cache.
    boss.post(LOAD, json={"lora_name": "two", "lora_path": str(root / "one")})
    assert said(api, "two") == said(api, "one")
    body = {"lora_name": "two", "lora_path": "two"}
    refused = boss.post(LOAD, json=body)
    assert refused.status_code == 400 and "already" in refused.json()["error"]["message"]
    assert boss.post(LOAD, json={**body, "load_inplace": True}).status_code == 200
    assert said(api, "two") == first


def test_unloading_during_a_stream(api: OpenAI, boss: httpx.Client) -> None:
    """The stream goes on with the adapter, to the end that it would have had."""
    options: Any = {"max_tokens": 300, "temperature": 0, "extra_body": {"ignore_eos": True}}
    boss.post(LOAD, json={"lora_name": "two", "lora_path": "two"})
    whole = api.chat.completions.create(model="two", messages=ASK, **options)
    pieces = api.chat.completions.create(model="two", messages=ASK, stream=True, **options)
    text, finish = "", None
    for number, piece in enumerate(pieces):
        text += piece.choices[0].delta.content or ""
        finish = piece.choices[0].finish_reason or finish
        if number == 3:
            assert boss.post(UNLOAD, json={"lora_name": "two"}).status_code == 200
            with pytest.raises(openai.NotFoundError):
                said(api, "two")
    assert (text, finish) == (whole.choices[0].message.content, "length")


def test_adapters_come_and_go_while_others_are_answered(api: OpenAI, boss: httpx.Client) -> None:
    want = {name: said(api, name) for name in (MODEL, "one")}
    stop, wrong, count = threading.Event(), list[Any](), [0]

    def ask(name: str) -> None:
        while not stop.is_set():
            try:
                found = said(api, name)
            except openai.OpenAIError as error:
                wrong.append(error)
                return
            count[0] += 1
            if found != want[name]:
                wrong.append((name, found))

    threads = [threading.Thread(target=ask, args=(name,)) for name in want]
    for thread in threads:
        thread.start()
    texts = set()
    for _ in range(12):
        assert boss.post(LOAD, json={"lora_name": "two", "lora_path": "two"}).status_code == 200
        texts.add(said(api, "two"))
        assert boss.post(UNLOAD, json={"lora_name": "two"}).status_code == 200
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and len(texts) == 1 and count[0] > 4


def test_only_an_administrator_may(server: Any, key: str, api: OpenAI) -> None:
    for path in (LOAD, UNLOAD):
        for given, status in ((key, 403), ("sk-none", 401)):
            headers = {"authorization": f"Bearer {given}"}
            body = {"lora_name": "one", "lora_path": "one"}
            answer = httpx.post(server.url + path, headers=headers, json=body)
            assert answer.status_code == status
    assert [card.id for card in api.models.list()] == [MODEL, "one"]


@pytest.fixture
def outside(root: Path) -> Iterator[None]:
    """Ways out of the root that lie within it."""
    (root / "link").symlink_to(root.parent / "secret")
    (root / "circle").symlink_to("circle")
    shutil.copytree(root / "one", root / "inner")
    weights = root / "inner" / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(root.parent / "secret" / weights.name)
    (root / "a file").write_text("")
    yield
    for name in ("link", "circle", "a file"):
        (root / name).unlink()
    shutil.rmtree(root / "inner")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("../secret", 400, "path_not_allowed"),
        ("one/../../secret", 400, "path_not_allowed"),
        ("/etc", 400, "path_not_allowed"),
        ("/nowhere", 400, "path_not_allowed"),
        ("..", 400, "path_not_allowed"),
        ("link", 400, "path_not_allowed"),
        ("inner", 400, "path_not_allowed"),
        ("~", 404, "adapter_not_found"),
        ("nowhere", 404, "adapter_not_found"),
        ("..%2fsecret", 404, "adapter_not_found"),
        ("..\\secret", 404, "adapter_not_found"),
        ("a file", 404, "adapter_not_found"),
        ("circle", 404, "adapter_not_found"),
        ("one\0", 404, "adapter_not_found"),
        ("x" * 4000, 404, "adapter_not_found"),
        (".", 400, "invalid_adapter"),
        ("", 400, "string_below_min_length"),
        ("x" * 5000, 400, "string_above_max_length"),
        (3, 400, "invalid_type"),
        (None, 400, "invalid_type"),
    ],
    ids=lambda value: str(value)[:30].replace("\0", "NUL"),
)  # fmt: skip
def test_no_path_leads_out_of_the_root(
    boss: httpx.Client, root: Path, outside: None, path: Any, status: int, code: str
) -> None:
    answer = boss.post(LOAD, json={"lora_name": "x", "lora_path": path})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, "lora_path")
    assert str(root.parent) not in answer.text
    assert len(boss.get("/v1/models").json()["data"]) == 2


def test_links_within_the_root_are_followed(boss: httpx.Client, root: Path) -> None:
    """As in the caches of the hubs, where all files are links."""
    folder = root / "links"
    folder.mkdir()
    for file in (root / "one").iterdir():
        (folder / file.name).symlink_to(Path("..", "one", file.name))
    answer = boss.post(LOAD, json={"lora_name": "x", "lora_path": "links"})
    shutil.rmtree(folder)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("linked", ["the folder", "a folder above", "the weights"])
@pytest.mark.parametrize("moment", ["behind the check", "behind the opening"])
def test_a_link_that_is_swapped_meanwhile_leads_nowhere(
    client_of: Callable[..., TestClient],
    tiny: LLM,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    linked: str,
    moment: str,
) -> None:
    """Somebody who writes below the root tries to have a file read that is outside of it."""
    shutil.copytree(root / "one", tmp_path / "root" / "above" / "own")
    shutil.copytree(root.parent / "secret", tmp_path / "secret" / "own")
    home = tmp_path / "root" / "above"
    place, outside = {
        "the folder": (home / "own", tmp_path / "secret" / "own"),
        "a folder above": (home, tmp_path / "secret"),
        "the weights": (home / "own" / WEIGHTS_NAME, tmp_path / "secret" / "own" / WEIGHTS_NAME),
    }[linked]
    owner, name = (
        (adapters, "_places") if moment == "behind the check" else (Service, "add_adapter")
    )
    real = getattr(owner, name)

    def swap() -> None:
        place.rename(tmp_path / "was here")
        place.symlink_to(outside)

    def swapped(*what: Any, **more: Any) -> Any:
        if moment == "behind the check":
            found = real(*what, **more)
            swap()
            return found
        swap()
        return real(*what, **more)

    monkeypatch.setattr(owner, name, swapped)
    before = len(os.listdir("/dev/fd"))
    with client_of(lora_root=str(tmp_path / "root")) as client:
        body = {"lora_name": "own", "lora_path": "above/own"}
        answer = client.post(LOAD, json=body)
        assert place.is_symlink()
        if moment == "behind the check":
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "invalid_adapter")
            assert str(tmp_path) not in answer.text
            assert "own" not in tiny.adapters
        else:  # it is what was there at first
            assert answer.status_code == 200
            try:
                tiny.adapters.load("one", root / "one")
                asked: Any = {"max_tokens": 24, "temperature": 0}
                texts = [tiny.chat(ASK, adapter=each, **asked).text for each in ("own", "one")]
                assert texts[0] == texts[1]
            finally:
                for each in ("own", "one"):
                    tiny.adapters.unload(each)
    assert len(os.listdir("/dev/fd")) <= before + 1  # the event loop's may go later


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"lora_name": "one", "lora_path": "one"}, 400, "lora_name"),
        ({"lora_name": MODEL, "lora_path": "one"}, 400, "lora_name"),
        ({"lora_name": "a\nb", "lora_path": "one"}, 400, "lora_name"),
        ({"lora_name": "", "lora_path": "one"}, 400, "lora_name"),
        ({"lora_name": "x" * 257, "lora_path": "one"}, 400, "lora_name"),
        ({"lora_path": "one"}, 400, "lora_name"),
        ({"lora_name": "x"}, 400, "lora_path"),
        ({"lora_name": "x", "lora_path": "one", "more": 1}, 400, "more"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_names_and_bodies(
    boss: httpx.Client, body: dict[str, Any], status: int, param: str
) -> None:
    answer = boss.post(LOAD, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert len(boss.get("/v1/models").json()["data"]) == 2


def test_unloading_what_is_not_there(boss: httpx.Client) -> None:
    for name in ("x", MODEL, "x" * 256):
        answer = boss.post(UNLOAD, json={"lora_name": name})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "lora_name")


def test_a_bad_adapter_is_told_and_changes_nothing(
    boss: httpx.Client, api: OpenAI, root: Path
) -> None:
    """What can be wrong with one is in `tests/model/test_adapter.py`; here, how it is told."""
    folder = root / "bad"
    shutil.copytree(root / "one", folder)
    where = folder / "adapter_config.json"
    good = json.loads(where.read_text())
    for change, words in (({"r": 0}, "the rank is 0"), ({"use_dora": True}, "DoRA")):
        where.write_text(json.dumps({**good, **change}))
        answer = boss.post(LOAD, json={"lora_name": "bad", "lora_path": "bad"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "invalid_adapter")
        assert error["message"].startswith("bad/adapter_config.json: ") and words in answer.text
        assert "PEFT" in error["message"], "the remedy"
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")  # to be waited for by whoever opens it
    where.write_text(json.dumps(good))
    answer = boss.post(LOAD, json={"lora_name": "bad", "lora_path": "bad"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_adapter"
    assert [card.id for card in api.models.list()] == [MODEL, "one"]
    shutil.rmtree(folder)


def test_the_limit_and_the_lack_of_a_root(
    client_of: Callable[..., TestClient], boss: httpx.Client, root: Path
) -> None:
    for name in ("a", "b", "c"):
        assert boss.post(LOAD, json={"lora_name": name, "lora_path": "one"}).status_code == 200
    answer = boss.post(LOAD, json={"lora_name": "d", "lora_path": "one"})
    assert answer.status_code == 400 and "There are 4" in answer.json()["error"]["message"]
    answer = client_of().post(LOAD, json={"lora_name": "d", "lora_path": str(root / "one")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "adapters_not_allowed")


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
def test_bodies_are_bounded_as_everywhere(boss: httpx.Client, path: str) -> None:
    good = {"lora_name": "x", "lora_path": "one"} if path == LOAD else {"lora_name": "x"}
    plain = json.dumps(good).encode()
    cases: list[tuple[bytes, dict[str, str], int]] = [
        (plain, {"content-type": "text/plain"}, 415),
        (plain, {"content-encoding": "gzip"}, 415),
        (plain[:-1] + b', "lora_name": "y"}', {}, 400),
        (plain[:-1] + b', "a": ' + b"[" * 100 + b"]" * 100 + b"}", {}, 400),
        (b"[]", {}, 400),
        (b"", {}, 400),
        (b"\xff", {}, 400),
    ]
    for body, headers, status in cases:
        headers = {"content-type": "application/json", **headers}
        assert boss.post(path, content=body, headers=headers).status_code == status, body[:80]
