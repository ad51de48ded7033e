"""What must not stand anywhere in the code: ways to run what a file or a peer says (X6)."""

import ast
from collections.abc import Iterator

BANNED_MODULES = {
    # They make objects, and call them, from bytes.
    *("pickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle", "joblib"),
    *("copyreg", "pickletools", "torch.distributed.rpc", "torch.package"),
    # They take pickles from a socket.
    *("multiprocessing.connection", "multiprocessing.managers", "xmlrpc", "socketserver"),
    # They run or import what a text says.
    *("runpy", "code", "codeop", "imp", "pty", "commands", "hydra", "fire", "builtins", "pydoc"),
    *("torch.utils.cpp_extension", "torch.hub"),
}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
BANNED_METHODS = {
    *(("os", name) for name in ("system", "popen", "startfile")),
    *(("subprocess", name) for name in ("getoutput", "getstatusoutput")),
    *(("asyncio", name) for name in ("create_subprocess_shell",)),
    *(("yaml", name) for name in ("load", "load_all", "unsafe_load", "full_load", "full_load_all")),
    *(("importlib.util", name) for name in ("spec_from_file_location", "module_from_spec")),
    *(("shutil", name) for name in ("unpack_archive",)),
    *(("tempfile", name) for name in ("mktemp",)),
    *(("logging.config", name) for name in ("dictConfig", "fileConfig", "listen")),
    *(("torch.jit", name) for name in ("load",)),
    *(("torch", name) for name in ("save",)),
}
# Whatever they are called on.
BANNED_ATTRIBUTES = {
    *("extractall", "unsafe_load", "exec_module", "load_module", "read_pickle", "to_pickle"),
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"),
    *("send_object_list", "recv_object_list", "add_safe_globals", "from_pretrained"),
    *("snapshot_download", "hf_hub_download"),
}
STARTS_PROCESSES = {"run", "call", "check_call", "check_output", "Popen"}
# Readers of pickles, and where each of them may stand (docs/adr/0003).
LOADERS = {("torch", "load"), ("numpy", "load"), ("np", "load"), ("torch.serialization", "load")}
READS_PICKLES = {"model/hf/pickled.py", "runtime/deepspeed_pickles.py"}
ALLOWS_NAMES = {"runtime/deepspeed_pickles.py"}  # with inert stand-ins, see there
# From a fixed table of names in the same file.
IMPORTS_BY_NAME = {
    *(
        "finetune/__main__.py",
        "finetune/tasks/__init__.py",
        "launch/__main__.py",
        "model/__init__.py",
    ),
    "model/hf/__init__.py",
}
# Asks where torch builds its extensions, and builds none from a text.
ASKS_FOR_EXTENSIONS = {"runtime/zero_swap.py"}


def offences(name: str, tree: ast.AST) -> Iterator[str]:
    """Everything in a file that must not be there, with its line."""
    for node in ast.walk(tree):
        for offence in _of(name, node):
            yield f"{name}:{getattr(node, 'lineno', 0)} {offence}"


def _of(file: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from _of_import(file, node)
    elif isinstance(node, ast.Call):
        owner, _, method = ast.unparse(node.func).rpartition(".")
        if not owner and method in BANNED_CALLS:
            yield f"calls {method}"
        if (owner, method) in BANNED_METHODS:
            yield f"calls {owner}.{method}"
        yield from _of_arguments(node)
        if (owner, method) in LOADERS:
            yield from _of_loader(file, node, owner)
        if method == "safe_globals" and file not in ALLOWS_NAMES:
            yield "lets torch.load make other things"
        if method == "import_module":
            yield from _of_import_by_name(file, node)
        if owner == "subprocess" and method in STARTS_PROCESSES:
            yield from _of_process(node)
    elif isinstance(node, ast.Attribute) and node.attr in BANNED_ATTRIBUTES:
        yield f"uses {node.attr}"
    elif isinstance(node, ast.Attribute) and node.attr == "__globals__":
        yield "looks into a function's globals"


def _of_import_by_name(file: str, node: ast.Call) -> Iterator[str]:
    match node.args:
        case [ast.Constant(value=str(name))] if not node.keywords:  # as in an import statement
            yield from _of_import(file, ast.Import([ast.alias(name)]))
        case _ if file not in IMPORTS_BY_NAME:
            yield "imports by name"


def _of_import(file: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        found = [(alias.name, "") for alias in node.names]
    else:
        found = [(node.module or "", alias.name) for alias in node.names]
    for module, name in found:
        if f"{module}.{name}" == "torch.utils.cpp_extension" and file in ASKS_FOR_EXTENSIONS:
            continue
        parents = module.split(".")
        chain = {".".join(parents[:end]) for end in range(1, len(parents) + 1)}
        if chain & BANNED_MODULES or f"{module}.{name}" in BANNED_MODULES:
            yield f"imports {module}"
        renamed = BANNED_METHODS | LOADERS | {("subprocess", n) for n in STARTS_PROCESSES}
        if (module, name) in renamed or name in BANNED_ATTRIBUTES | {"safe_globals"}:
            yield f"imports {module}.{name}, which the gate would not see"
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname and alias.name in ("os", "torch", "yaml", "subprocess", "shutil"):
                yield f"calls {alias.name} {alias.asname}"


def _of_arguments(node: ast.Call) -> Iterator[str]:
    for keyword in node.keywords:
        is_false = isinstance(keyword.value, ast.Constant) and not keyword.value.value
        if keyword.arg in ("shell", "trust_remote_code", "allow_pickle") and not is_false:
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def _of_loader(file: str, node: ast.Call, owner: str) -> Iterator[str]:
    options = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if owner != "torch" or file not in READS_PICKLES:
        yield f"calls {owner}.load"
    if options.get("weights_only") != "True":
        yield "weights_only=True is missing"
    if None in options or "pickle_module" in options:
        yield "options that cannot be read"


def _of_process(node: ast.Call) -> Iterator[str]:
    command = node.args[0] if node.args else None
    is_text = isinstance(command, ast.Constant | ast.JoinedStr | ast.BinOp)
    is_joined = isinstance(command, ast.Call) and ast.unparse(command.func).endswith("join")
    if command is None or is_text or is_joined:
        yield "starts a process from a text"
