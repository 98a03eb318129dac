"""A plugin of pytest's, for `compute-sanitizer`: each array has an allocation of its own, beyond which it can see."""


def pytest_configure() -> None:
    import cupy
    cupy.cuda.set_allocator(None)
