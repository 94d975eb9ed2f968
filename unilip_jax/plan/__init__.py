"""Estimates memory, FLOPs, collectives and time of a run on devices that are not here (--mode=plan).

command is the entry; estimate plans one config, sweeping searches for a better one. topology names devices,
compiling compiles the train step for them, and hlo, memory, collectives and timing read the compiled
program. gpu counts from the traced step, without a compiler.
"""
