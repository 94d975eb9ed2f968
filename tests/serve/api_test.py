"""Clients work unpatched: the official openai package, curl, and the requests of lmms-eval and others."""

import base64
import concurrent.futures
import io
import json
import subprocess
import urllib.request

import numpy as np
import openai
from PIL import Image
import pytest

from tests.serve import fakes
from unilip_jax.serve import options, uploads

_KEY = "a secret"


@pytest.fixture(scope="module")
def running():
  with fakes.running(key=_KEY) as running:
    yield running


@pytest.fixture(scope="module")
def client(running):
  with openai.OpenAI(base_url=f"{running.url}/v1", api_key=_KEY, max_retries=0) as client:
    yield client


def _decoded(item):
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(item.b64_json))))


def _url(seed=0):
  return "data:image/png;base64," + uploads.as_base64(uploads.encode(fakes.image_of("", seed)))


def _asking(text, *urls):
  return [{"role": "user", "content": [
      {"type": "text", "text": text}, *({"type": "image_url", "image_url": {"url": u}} for u in urls)]}]


def test_models_are_listed_and_found_by_name(client):
  assert [m.id for m in client.models.list()] == ["unilip", "gpt-image-1"]
  assert client.models.retrieve("gpt-image-1").object == "model"
  with pytest.raises(openai.NotFoundError, match="unilip, gpt-image-1") as error:
    client.models.retrieve("gpt-4o")
  assert error.value.code == "model_not_found"


def test_each_image_of_a_request_has_a_seed_of_its_own(client):
  images = client.images.generate(model="unilip", prompt="a cat", n=3, size="28x28", extra_body={"seed": 5})
  assert [item.seed for item in images.data] == [5, 6, 7]
  for item in images.data:
    np.testing.assert_array_equal(_decoded(item), fakes.image_of("a cat", item.seed))


def test_without_a_seed_every_request_has_another_which_is_returned(client):
  first, second = (client.images.generate(model="gpt-image-1", prompt="a cat").data[0] for _ in range(2))
  assert first.seed != second.seed
  np.testing.assert_array_equal(_decoded(first), fakes.image_of("a cat", first.seed))


@pytest.mark.parametrize("many", [False, True], ids=["image", "image[]"])
def test_edits_take_a_file_or_a_list_of_one(client, many):
  source = fakes.image_of("", 1)
  data = uploads.encode(source)
  edited = client.images.edit(model="unilip", prompt="invert", image=[data] if many else data,
                              extra_body={"seed": 2, "num_inference_steps": 10})
  np.testing.assert_array_equal(_decoded(edited.data[0]), 255 - source)


def test_an_edit_of_another_size_is_stretched_as_unilip_does(client, running):
  source = np.asarray(Image.fromarray(fakes.image_of("", 1)).resize((40, 20)))
  edited = client.images.edit(model="unilip", prompt="invert", image=uploads.encode(source))
  assert _decoded(edited.data[0]).shape == (fakes.SIZE, fakes.SIZE, 3)


def test_offered_sizes_are_made_and_an_edit_without_one_keeps_its_shape():
  """Sizes of the API are width x height, those of the offer (height, width)."""
  offer = options.Offer(sizes=((28, 56), (56, 28)))
  with fakes.running(offer=offer) as running:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    wide = client.images.generate(model="unilip", prompt="a cat", size="56x28", extra_body={"seed": 5})
    assert wide.size == "56x28"
    np.testing.assert_array_equal(_decoded(wide.data[0]), fakes.image_of("a cat", 5, (28, 56)))
    for shape, made in (((30, 50), (28, 56)), ((70, 30), (56, 28)), ((9, 10), (28, 28))):
      source = np.zeros((*shape, 3), np.uint8)
      edited = client.images.edit(model="unilip", prompt="invert", image=uploads.encode(source))
      assert _decoded(edited.data[0]).shape == (*made, 3)
      chosen = client.images.edit(
          model="unilip", prompt="invert", image=uploads.encode(source), size="28x56")
      assert _decoded(chosen.data[0]).shape == (56, 28, 3)
    with pytest.raises(openai.BadRequestError, match=r"28x28, 56x28, 28x56 \(width x height"):
      client.images.generate(model="unilip", prompt="a cat", size="84x28")


def test_chat_answers_with_a_string_and_counts_tokens(client):
  done = client.chat.completions.create(
      model="unilip", messages=_asking("what is this?", _url()), max_tokens=40, temperature=0)
  assert done.choices[0].message.content == "what is this? 28x28"
  assert done.choices[0].finish_reason == "stop"
  assert done.usage.completion_tokens == len("what is this? 28x28")
  assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_a_conversation_can_have_several_images(client):
  done = client.chat.completions.create(model="unilip", messages=_asking("which?", _url(0), _url(1)))
  assert done.choices[0].message.content == "which? 28x28 28x28"


def test_a_stream_is_the_answer_in_parts_with_its_end_and_its_tokens(client):
  stream = list(client.chat.completions.create(
      model="unilip", messages=_asking("wörds and wörds"), max_tokens=9, stream=True,
      stream_options={"include_usage": True}))
  assert stream[0].choices[0].delta.role == "assistant"
  text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
  assert text == "wörds an"
  assert [c.choices[0].finish_reason for c in stream[:-1]] == [None] * (len(stream) - 2) + ["length"]
  assert stream[-1].choices == []
  assert stream[-1].usage.completion_tokens == 9
  assert len({c.id for c in stream}) == 1


def test_a_stream_ends_with_done(running):
  body = {"messages": _asking("hi"), "stream": True}
  request = urllib.request.Request(f"{running.url}/v1/chat/completions", json.dumps(body).encode(), {
      "content-type": "application/json", "authorization": f"Bearer {_KEY}"})
  with urllib.request.urlopen(request, timeout=20) as answer:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.read().decode().split("\n\n") if line]
  assert lines[-1] == "data: [DONE]"
  assert all(line.startswith("data: {") for line in lines[:-1])


def test_a_stop_text_ends_an_answer_and_never_shows(client):
  options = dict(model="unilip", messages=_asking("one two three"), stop=["two", "four"])
  assert client.chat.completions.create(**options).choices[0].message.content == "one"
  parts = [c.choices[0].delta.content or "" for c in client.chat.completions.create(stream=True, **options)]
  assert "".join(parts) == "one"


def test_curl_makes_an_image(running, tmp_path):
  done = subprocess.run(
      ["curl", "-sS", f"{running.url}/v1/images/generations", "-H", "Content-Type: application/json", "-H",
       f"Authorization: Bearer {_KEY}", "-d", '{"prompt": "a cat", "extra_body": {"seed": 9}}'],
      capture_output=True, check=True, timeout=30)
  answer = json.loads(done.stdout)
  assert answer["size"] == "28x28"
  image = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
  np.testing.assert_array_equal(np.asarray(image), fakes.image_of("a cat", 9))


def test_curl_edits_an_image(running, tmp_path):
  (tmp_path / "a.png").write_bytes(uploads.encode(fakes.image_of("", 1)))
  done = subprocess.run(
      ["curl", "-sS", f"{running.url}/v1/images/edits", "-H", f"Authorization: Bearer {_KEY}", "-F",
       f"image=@{tmp_path}/a.png", "-F", "prompt=invert", "-F", "n=2"],
      capture_output=True, check=True, timeout=30)
  assert len(json.loads(done.stdout)["data"]) == 2


def test_the_requests_of_lmms_eval_are_answered_in_batches(client, running):
  """What `lmms_eval --model openai` sends: 32 at once, PNG data URLs, max_tokens and temperature alone."""
  del running.rows.batches[:]
  ask = lambda i: client.chat.completions.create(
      model="unilip", messages=_asking(f"question {i}", _url(i)), max_tokens=1024, temperature=0)
  with concurrent.futures.ThreadPoolExecutor(32) as pool:
    texts = [done.choices[0].message.content for done in pool.map(ask, range(32))]
  assert texts == [f"question {i} 28x28" for i in range(32)]
  assert len(running.rows.batches) < 32


def test_a_conversation_keeps_its_turns_and_its_system_message(client):
  messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"},
              {"role": "assistant", "content": None}, {"role": "assistant", "content": "b"},
              {"role": "user", "content": "c"}]
  done = client.chat.completions.create(model="unilip", messages=messages)
  assert done.choices[0].message.content == "c"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_can_be_an_image(client, stream):
  source = fakes.image_of("", 3)
  for messages, expected in ((_asking("a cat"), fakes.image_of("a cat", 8)),
                             (_asking("invert", _url(3)), 255 - source)):
    done = client.chat.completions.create(
        model="unilip", messages=messages, seed=8, stream=stream,
        extra_body={"modalities": ["image", "text"]})
    if stream:
      images, = (c.choices[0].delta.images for c in done if getattr(c.choices[0].delta, "images", None))
    else:
      assert done.choices[0].message.content == ""
      images = done.choices[0].message.images
    np.testing.assert_array_equal(uploads.from_url(images[0]["image_url"]["url"], "", 10**6), expected)


@pytest.mark.parametrize(("change", "code", "param"), [
    ({"size": "512x512"}, "invalid_size", "size"),
    ({"n": 11}, "invalid_n", "n"),
    ({"prompt": " "}, "invalid_prompt", "prompt"),
    ({"prompt": "x" * 32_001}, "invalid_prompt", "prompt"),
    ({"response_format": "url"}, "invalid_response_format", "response_format"),
    ({"stream": True}, "unsupported_parameter", "stream"),
    ({"background": "transparent"}, "unsupported_parameter", "background"),
    ({"extra_body": {"num_inference_steps": 21}}, "invalid_num_inference_steps", "num_inference_steps"),
    ({"extra_body": {"negative_prompt": "blur"}}, "unsupported_parameter", "negative_prompt"),
    ({"extra_body": {"guidance_scale": -1}}, "invalid_guidance_scale", "guidance_scale"),
    ({"extra_body": {"seed": 2**64}}, "invalid_seed", "seed"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_refusal_names_the_field_and_has_a_stable_code(client, change, code, param):
  with pytest.raises(openai.BadRequestError) as error:
    client.images.generate(**{"model": "unilip", "prompt": "a cat"} | change)
  assert (error.value.code, error.value.param) == (code, param)
  assert error.value.type == "invalid_request_error"
  assert error.value.request_id.startswith("req_")


@pytest.mark.parametrize(("change", "code"), [
    ({"messages": []}, "invalid_messages"),
    ({"messages": _asking("a", *[_url()] * 11)}, "too_many_images"),
    ({"messages": _asking("a", _url(0), _url(1)), "modalities": ["image"]}, "too_many_images"),
    ({"messages": _asking("a", "https://example.com/a.png")}, "url_not_supported"),
    ({"messages": _asking("a", "data:image/png;base64,AAAA")}, "invalid_image"),
    ({"messages": _asking("a" * 100_000)}, "context_length_exceeded"),
    ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}, "invalid_messages"),
    ({"max_tokens": 5000}, "invalid_max_tokens"),
    ({"n": 2}, "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "unsupported_parameter"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter"),
    ({"logprobs": True}, "unsupported_parameter"),
    ({"modalities": ["audio"]}, "invalid_modalities"),
    ({"stop": ["a"] * 5}, "invalid_stop"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_chat_refuses_what_the_model_cannot(client, change, code):
  with pytest.raises(openai.BadRequestError) as error:
    client.chat.completions.create(**{"model": "unilip", "messages": _asking("a")} | change)
  assert error.value.code == code


def test_a_wrong_key_is_refused_and_the_right_one_never_shown(running):
  with (openai.OpenAI(base_url=f"{running.url}/v1", api_key="another", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as error):
    client.models.list()
  assert error.value.code == "invalid_api_key"
  assert _KEY not in str(error.value.body)


def test_health_and_metrics_need_no_key(running):
  with urllib.request.urlopen(f"{running.url}/health", timeout=10) as answer:
    assert (answer.status, answer.read()) == (200, b"")
  with urllib.request.urlopen(f"{running.url}/metrics", timeout=10) as answer:
    text = answer.read().decode()
  assert 'unilip_requests_total{route="/v1/images/generations",status="200"}' in text
  assert "unilip_queue_rows 0.0" in text


def test_fields_without_a_meaning_are_named(client):
  answer = client.images.with_raw_response.generate(
      model="unilip", prompt="a", extra_body={"sharpness": 3, "\x00": 1})
  assert answer.headers["x-ignored-fields"] == "sharpness"
