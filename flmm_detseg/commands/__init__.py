"""What `flmm-detseg` can do, one module a command: ``add_arguments(parser)`` and ``run(args)``.

Modules are cheap to import; what takes seconds is imported by ``run``, after the arguments are known to be right.
"""
