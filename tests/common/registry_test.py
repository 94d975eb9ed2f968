"""Names of plug-ins are imported when they are used, and no name has two meanings."""

import pytest

from unilip_jax.common import registry


@pytest.fixture(autouse=True)
def _own_rows(monkeypatch):
  registry.names("task")  # loads the plug-ins
  monkeypatch.setattr(registry, "_rows", {})
  monkeypatch.setattr(registry, "_old_names", {})


def test_a_target_is_imported_when_it_is_found():
  registry.register("task", "missing", "no_such_module:anything")
  registry.register("task", "path", "os:path")
  assert registry.names("task") == ["missing", "path"]
  assert registry.find("task", "path").basename("a/b") == "b"
  with pytest.raises(ModuleNotFoundError, match="no_such_module"):
    registry.find("task", "missing")


def test_a_name_with_two_targets_is_refused():
  registry.register("task", "a", "os:path")
  registry.register("task", "a", "os:path")  # the same again is no conflict
  with pytest.raises(ValueError, match="registered twice"):
    registry.register("task", "a", "os:sep")


def test_an_old_name_is_not_listed_and_explains_itself():
  registry.register("task", "new", "os:path")
  registry.register_old_name("task", "old", "old is called new now")
  assert registry.names("task") == ["new"]
  assert registry.has("task", "old")
  assert registry.has("task", "new")
  assert not registry.has("task", "other")
  with pytest.raises(ValueError, match="called new now"):
    registry.find("task", "old")
  with pytest.raises(ValueError, match="unknown task 'other'; known: new"):
    registry.find("task", "other")
