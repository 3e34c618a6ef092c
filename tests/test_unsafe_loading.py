"""No file that is read can run code or be written elsewhere: what the package may not call, looked for in its text."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("inpaint_jax", "launch", "configs") for path in (ROOT / room).rglob("*.py"))
# Modules that build objects out of what they read, or compile it.
MODULES = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "copyreg", "dbm"),
    *("yaml", "ruamel", "torch", "pandas", "jsonpickle", "runpy", "code", "codeop", "xmlrpc", "ctypes"),
}
# Calls by the last part of their name, wherever it comes from.
CALLS = {
    *("eval", "exec", "compile", "__import__", "extractall", "unpack_archive", "unsafe_load", "full_load"),
    *("load_pickle", "read_pickle", "fromfile_pickle", "system", "popen", "exec_module", "import_module"),
}
# Where one of them is meant: file -> names, each with its reason.
ADMITTED = {
    "inpaint_jax/pretrained.py": {"pickle"},  # the restricted reader, for one file of a known hash
    "inpaint_jax/reproduction.py": {"import_module"},  # configs of this package, by a name that is an identifier
}


def last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def owner(node: ast.AST) -> str:
    return last_name(node.value) if isinstance(node, ast.Attribute) else ""


def keyword(call: ast.Call, name: str) -> object:
    values = [word.value for word in call.keywords if word.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else "not given"


def unsafe(text: str) -> set[str]:
    """Returns what a module's text imports or calls that could run, or write, what a file says."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").partition(".")[0]} & MODULES
            found |= {alias.name for alias in node.names} & (CALLS | {"load"})
        elif isinstance(node, ast.Call):
            name, of = last_name(node.func), owner(node.func)
            # re.compile and a jitted function's compile make programs of this package's own text.
            if name in CALLS and not (name == "compile" and of):
                found.add(name)
            if ast.unparse(node.func) in ("np.load", "numpy.load") and keyword(node, "allow_pickle") is not False:
                found.add("np.load")
            if keyword(node, "allow_pickle") is True:
                found.add("allow_pickle=True")
            if name == "extract" and of not in ("", "recipes"):
                found.add("extract")
            if keyword(node, "shell") is True:
                found.add("shell=True")
        elif isinstance(node, ast.Attribute) and node.attr == "extract" and owner(node) in ("tar", "archive"):
            found.add("extract")
    return found


def test_nothing_that_is_read_can_run():
    found = {path.relative_to(ROOT).as_posix(): unsafe(path.read_text()) for path in FILES}
    assert len(found) > 100
    assert {name: what for name, what in found.items() if what} == ADMITTED


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import yaml.cyaml", "yaml"),
        ("import torch", "torch"),
        ("import numpy as np; np.load('x')", "np.load"),
        ("import numpy as np; np.load('x', allow_pickle=True)", "allow_pickle=True"),
        ("import numpy as np; np.savez('x', allow_pickle=True)", "allow_pickle=True"),
        ("from numpy import load", "load"),
        ("eval('1')", "eval"),
        ("builtins.exec('1')", "exec"),
        ("tar.extractall('x')", "extractall"),
        ("archive.extract(member)", "extract"),
        ("shutil.unpack_archive('x')", "unpack_archive"),
        ("os.system('x')", "system"),
        ("subprocess.run('x', shell=True)", "shell=True"),
        ("compile('1', '', 'eval')", "compile"),
    ],
)
def test_each_of_them_would_be_found(line, found):
    assert found in unsafe(line)


def test_the_one_pickle_is_read_by_the_restricted_reader_alone():
    """Neither pickle.load nor a plain Unpickler: a subclass that admits NumPy's arrays and refuses all other names."""
    tree = ast.parse((ROOT / "inpaint_jax/pretrained.py").read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert {node.attr for node in attributes if owner(node) == "pickle"} == {"Unpickler", "UnpicklingError"}
    made = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and last_name(node.func) == "Unpickler"]
    assert not made
    [reader] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
    assert {part.name for part in reader.body if isinstance(part, ast.FunctionDef)} == {"find_class"}
