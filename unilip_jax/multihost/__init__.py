"""Several processes as one run.

session joins the processes and holds their barriers, rendezvous finds who is missing before JAX starts,
coordinator runs JAX's coordination service in a process that outlives process 0, watchdog ends the run with
a message when a process is lost, preemption stops all of them at one step. options are the settings of one
process, flags their command line.
"""
