"""The command checks its options without JAX, and its requirements agree with those of the tests."""

import pathlib
import re
import socket

import pytest

from tests.serve import fakes
from unilip_jax.infer import model, rows
from unilip_jax.serve import __main__ as command
from unilip_jax.serve import options, service

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def served(monkeypatch):
  """The arguments of the call that would serve."""
  calls = []
  monkeypatch.setattr(command, "_serve", lambda *arguments: calls.append(arguments))
  monkeypatch.setattr(command, "_check_address", lambda host, port: None)  # port 8000 may be taken
  monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "gradio" else name)
  return calls


def _main(*more):
  command.main(["--checkpoint=shapes:gen3", *more])


def test_defaults_are_those_of_the_limits(served, capsys):
  _main()
  _, names, limits, offer, key, page = served[0]
  assert (names, limits, offer, key, page) == (["unilip"], options.Limits(), options.Offer(), "", False)
  assert "pip install -r requirements-serve.txt" in capsys.readouterr().err


def test_options_reach_the_server(served):
  _main("--compare=shapes:gen2", "--steps=8,4,8", "--max_body_mb=1", "--aliases=a,b", "--timeout=5",
        "--page=no", "--max_tiles=4")
  _, names, limits, offer, _, _ = served[0]
  assert names == ["unilip", "unilip-compare"]
  assert (limits.body_bytes, limits.seconds) == (2**20, 5.0)
  assert offer == options.Offer((8, 4), aliases=("a", "b"), max_tiles=4)


def test_adapters_are_loaded_on_top_of_the_first_checkpoint_alone(monkeypatch):
  class _LoadedError(Exception):
    """Ends the command when its checkpoints are loaded."""

  def stop(*_):
    raise _LoadedError

  loads = []
  monkeypatch.setattr(
      model.UniLIP, "load", lambda path, _, **given: loads.append((path, given["adapters"])))
  monkeypatch.setattr(rows, "Rows", lambda *_: fakes.Rows())
  monkeypatch.setattr(service, "Service", stop)
  with pytest.raises(_LoadedError):
    _main("--compare=shapes:gen2", "--lora", "runs/a:0.5", "runs/b", "--page=no")
  assert loads == [("shapes:gen3", ["runs/a:0.5", "runs/b"]), ("shapes:gen2", ())]


def test_a_key_comes_from_the_environment_alone(served, monkeypatch):
  monkeypatch.setenv("SECRET", "s3cret")
  _main("--key_from_environment=SECRET", "--page=no")
  assert served[0][4] == "s3cret"
  monkeypatch.setenv("SECRET", " ")
  with pytest.raises(ValueError, match="SECRET"):
    _main("--key_from_environment=SECRET")


def test_an_open_address_without_a_key_is_told(served, capsys):
  _main("--host=0.0.0.0", "--page=no")
  assert "without --key_from_environment" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "message"), [
    ("--steps=0", "steps=0"), ("--steps=a", "separated by commas"), ("--guidance=21", "guidance=21"),
    ("--timeout=0", "timeout=0"), ("--grace=-1", "grace=-1"), ("--model_name=", "not be empty"),
    ("--page=yes", "requirements-serve.txt")])
def test_mistakes_name_the_option(served, option, message):
  with pytest.raises(ValueError, match=message):
    _main(option)
  assert not served


def test_absent_packages_are_named(served, monkeypatch):
  monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else name)
  with pytest.raises(ValueError, match=r"needs uvicorn: pip install -r requirements-serve.txt"):
    _main()


def test_the_server_is_tested_with_the_versions_that_it_pins():
  pins = lambda name: dict(re.findall(r"^([\w-]+)==(\S+)", (_ROOT / name).read_text(), re.MULTILINE))
  serve, dev = pins("requirements-serve.txt"), pins("requirements-dev.txt")
  assert {name: dev.get(name) for name in serve if name != "gradio"} == {
      name: version for name, version in serve.items() if name != "gradio"}
  assert {name.replace("-", "_") for name in serve} - {"gradio"} == set(command._PACKAGES)


def test_an_address_that_cannot_be_listened_on_is_refused_before_weights_are_read(monkeypatch):
  monkeypatch.setattr(command, "_serve", lambda *args: pytest.fail("weights were read"))
  monkeypatch.setattr(command, "_has_page", lambda args: False)
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    for port, message in ((taken.getsockname()[1], "in use"), (99_999, "at most 65535")):
      with pytest.raises(ValueError, match=message):
        command.main(["--checkpoint=shapes:gen3", f"--port={port}"])
  with pytest.raises(ValueError, match=r"--host=203\.0\.113\.1"):  # an address of no machine
    command.main(["--checkpoint=shapes:gen3", "--host=203.0.113.1", "--port=0"])
