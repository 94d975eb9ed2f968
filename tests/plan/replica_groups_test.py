"""Groups of a collective are read in every form that XLA writes, and another form is refused."""

import pytest

from unilip_jax.plan import collectives, replica_groups

_EVEN, _PAIRS = ((0, 2), (1, 3)), ((0, 1), (2, 3))


@pytest.mark.parametrize(("text", "groups"), [
    ("replica_groups={{0,1},{2,3}}", _PAIRS),
    ("replica_groups={}", ((0, 1, 2, 3),)),
    ("replica_groups=[2,2]<=[4]", _PAIRS),
    ("replica_groups=[1,4]<=[4]", ((0, 1, 2, 3),)),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", _EVEN),
    ("replica_groups=[4,2]<=[2,2,2]T(1,0,2)", ((0, 1), (4, 5), (2, 3), (6, 7))),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", _PAIRS),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", _EVEN),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
    ("replica_groups=mesh['a'=2,'b'=2] {}", ((0,), (1,), (2,), (3,))),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_0'}", _PAIRS),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", _EVEN),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]<=[2,2]T(1,0)) {'b'}", _EVEN),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", _EVEN),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", _EVEN),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", _PAIRS),
    ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
])
def test_every_form_names_its_groups(text, groups):
  assert replica_groups.parse(f", channel_id=1, {text}, use_global_device_ids=true", 4) == groups


def test_groups_of_a_mesh_of_256_have_16_devices():
  """The form that libtpu writes for a 16 × 16 mesh; as a pair it flattered each plan for many chips."""
  text = ("channel_id=6, replica_groups=mesh['axis_0'=16,'axis_1'=1,'axis_2'=16], "
          "device_ids=([16,16]T(1,0)) {'axis_0'}, dimensions={1}")
  assert collectives.group_size(text) == 16
  assert replica_groups.parse(text)[1] == tuple(range(16, 32))
  assert replica_groups.parse(text.replace("{'axis_0'}", "{'axis_2'}"))[1] == tuple(range(1, 256, 16))


@pytest.mark.parametrize("text", [
    "channel_id=1, to_apply=%add", "replica_groups=", "replica_groups=all", "replica_groups=[4,4]",
    "replica_groups=[2,2,4]<=[16]", "replica_groups=[3,4]<=[16]", "replica_groups=mesh['a'=4] {'b'}",
    "replica_groups=mesh[a=4] {'a'}", "replica_groups=mesh['a'=4] {'a':(3)2}", "replica_groups=mesh['a'=4]",
    "replica_groups=mesh['a'=4], device_ids=(reversed) {'a'}",
    "replica_groups=mesh['a'=4], device_ids=(0,1) {'a'}", "replica_groups=mesh['a'=4] {'a'@2}",
    "replica_groups={}"])
def test_an_unknown_form_is_refused_with_its_text(text):
  with pytest.raises(ValueError, match="plan: ") as refused:
    replica_groups.parse(text)
  assert text.partition("=")[2][:20] in str(refused.value)
