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
        owner = getattr(getattr(node.func, "value", None), "id", "")
        assert (owner, method) != ("torch", "load"), f"{where}: checkpoints are safetensors"
        assert method not in ("all_gather_object", "broadcast_object_list"), f"{where} pickles"
