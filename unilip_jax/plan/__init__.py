"""Plans a run before a chip is rented: `python -m unilip_jax.main --mode=plan --topology=v5e:16x16 ...`.

`run.run` is the entry; topology names devices, compiling makes their program, hlo, memory, collectives
and timing read it, gpu counts without a compiler, sweeping searches.
"""
