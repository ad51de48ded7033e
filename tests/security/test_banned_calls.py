"""What must not stand anywhere in the code: ways to run what a file or a user's text says."""

import ast

from tests.architecture.source import sources

BANNED_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_METHODS = {
    ("os", "system"),
    ("os", "popen"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("tarfile", "extractall"),
}


def calls():
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                yield f"{source.name}:{node.lineno}", node


def test_no_pickle() -> None:
    for source in sources():
        for module, line in source.imports():
            assert module.split(".")[0] not in BANNED_MODULES, f"{source.name}:{line}"


def test_no_calls_that_run_text() -> None:
    for where, node in calls():
        name = node.func.id if isinstance(node.func, ast.Name) else None
        assert name not in BANNED_CALLS, f"{where} calls {name}"
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            pair = (node.func.value.id, node.func.attr)
            assert pair not in BANNED_METHODS, f"{where} calls {'.'.join(pair)}"


def test_no_unsafe_arguments() -> None:
    for where, node in calls():
        arguments = {k.arg: k.value for k in node.keywords}
        for name in ("shell", "trust_remote_code"):
            value = arguments.get(name)
            assert not (isinstance(value, ast.Constant) and value.value is True), (
                f"{where} {name}=True"
            )
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        assert method not in ("all_gather_object", "broadcast_object_list"), f"{where} pickles"


# The two places that read a pickle, because a person asked for it (docs/adr/0003).
READS_PICKLES = ["model/hf/pickled.py", "runtime/deepspeed_pickles.py"]
# Names that torch's reader may meet beyond its own list, answered with an inert stand-in there.
MAKES_EXCEPTIONS = ["runtime/deepspeed_pickles.py"]
LOADERS = {
    "torch": ("load",),
    "torch.serialization": ("load", "add_safe_globals", "safe_globals"),
    "torch.jit": ("load",),
    "torch.hub": ("load", "load_state_dict_from_url"),
    "numpy": ("load",),
    "np": ("load",),
    "joblib": ("load",),
}


def test_pickles_are_read_in_two_places_and_restricted() -> None:
    """By torch.load alone, told to build nothing but tensors."""
    places, exceptions = [], []
    for where, node in calls():
        owner, _, method = ast.unparse(node.func).rpartition(".")
        if (owner, method) == ("torch.serialization", "safe_globals"):
            exceptions.append(where.split(":")[0])
        elif method in LOADERS.get(owner, ()):
            assert (owner, method) == ("torch", "load"), f"{where} calls {owner}.{method}"
            places.append(where.split(":")[0])
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert options.get("weights_only") == "True", f"{where}: weights_only=True is missing"
            assert None not in options, f"{where}: options that cannot be read"
    assert places == READS_PICKLES
    assert exceptions == MAKES_EXCEPTIONS


def test_loaders_have_no_other_names() -> None:
    for source in sources():
        for module, line in source.imports():
            owner, _, name = module.rpartition(".")
            assert name not in LOADERS.get(owner, ()), f"{source.name}:{line} imports {module}"
