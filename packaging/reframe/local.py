"""ReFrame on one machine: no batch system; the mpirun on PATH starts the ranks."""

site_configuration = {
    "systems": [{
        "name": "local",
        "hostnames": [".*"],
        "partitions": [{"name": "default", "scheduler": "local", "launcher": "mpirun", "environs": ["builtin"],
                        "max_jobs": 1}],        # one at a time: they would slow each other down
    }],
}
