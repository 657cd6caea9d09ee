"""The root file system of the sandbox: everything that a workload can execute, and nothing else.

    /usr/bin/python3              the interpreter on which the running environment is based
    /usr/lib/python3.N            its standard library, without tests, tools and GUI
    /usr/lib/*.so                 loader and shared libraries of the host that any of the files here needs
    /opt/cloister/lib             the packages of the extra ``train`` and the trusted part of ``cloister``
    /etc                          a synthetic passwd, group, hosts, nsswitch.conf
    /proc /dev /tmp /job /assets /out /run      empty: mount points

There is no shell and no compiler. Bytecode is compiled here from the very sources in the image, with the path that
it has in the image and without checking times (PEP 552, unchecked hash): so two machines with the same packages
get the same bytes, whatever was imported or installed before. Files are hard links where that is
safe, so a multi-gigabyte environment costs seconds and no space; ``hardlinks=False`` makes an independent copy.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloister

from ..crypto import frame, sha256
from ..errors import Internal, Misuse
from .elf import read_elf, system_libraries
from .packages import BASE, closure, record_text, train_requirements, wheel_files

__all__ = ["LIBRARY", "PYTHON", "build_image", "image_stamp"]

PYTHON = "/usr/bin/python3"
LIBRARY = "/opt/cloister/lib"
_STDLIB = f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}"
_MOUNT_POINTS = ("proc", "dev", "tmp", "job", "assets", "out", "run")
_LINKS = {"lib": "usr/lib", "lib64": "usr/lib", "bin": "usr/bin", "usr/lib64": "lib"}
_TRUSTED = ("crypto", "sealed", "audit", "contracts", "attestation", "workload")
# What only owners and nodes run: verifiers of evidence, stores, recovery of vaults. The workload imports none of it, so
# it is not part of what everybody has to trust; a new module is in the image unless it is named here.
_WITHOUT = (
    *(f"attestation/{name}" for name in ("bootlog", "insecure", "nvidia", "snp", "tdx", "tpm")),
    *(
        f"attestation/{name}.py"
        for name in (
            *("collateral", "composite", "corim", "events", "external", "firmware", "guests", "reader", "registry"),
        )
    ),
    "audit/database_store.py",
    "audit/rows.py",
    "contracts/releases.py",
    "contracts/requests.py",
    *(
        f"crypto/{name}.py"
        for name in (
            *("canonical_xml", "cbor", "certificates", "cose", "der", "ecdh", "jws", "ocsp", "pem", "shamir"),
            *("slip39", "slip39_words", "tpm_credential", "x509", "xmldsig"),
        )
    ),
    "sealed/stores",
)
_STDLIB_WITHOUT = frozenset(
    {"__pycache__", "dist-packages", "site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip"}
    | {"lib2to3", "venv", "curses", "dbm", "sqlite3", "pydoc_data"}
)
_MODULES_WITHOUT = (
    "_crypt",
    "_ctypes_test",
    "_curses",
    "_dbm",
    "_gdbm",
    "_sqlite3",
    "_test",
    "_tkinter",
    "_xx",
    "nis.",
    "ossaudiodev",
    "readline",
    "xxlimited",
)
_ETC = {
    "passwd": "workload:x:1000:1000::/tmp:/nonexistent\nnobody:x:65534:65534::/nonexistent:/nonexistent\n",
    "group": "workload:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
# Fixed, whatever the number of cores: compiled bytes depend on what the same process compiled before.
_COMPILE_PARTS = 8


class _Tree:
    """Puts files into the image that is being built."""

    def __init__(self, root: Path, hardlinks: bool) -> None:
        self.root = root
        self._hardlinks = hardlinks
        self._made: set[Path] = set()

    def folder(self, path: str) -> Path:
        target = self.root / path
        for folder in (*reversed(target.parents), target):
            if folder not in self._made and folder.is_relative_to(self.root):
                folder.mkdir(exist_ok=True)
                folder.chmod(0o755)  # whatever the umask: the sandbox's user is somebody else
            self._made.add(folder)
        return target

    def text(self, path: str, text: str) -> None:
        target = self.folder(os.path.dirname(path)) / os.path.basename(path)
        target.write_text(text)
        target.chmod(0o644)

    def file(self, path: str, source: Path, *, link: bool = True) -> None:
        target = self.folder(os.path.dirname(path)) / os.path.basename(path)
        source = source.resolve()
        info = source.stat()
        if not (self._hardlinks and link and _shareable(info) and _linked(source, target)):
            shutil.copyfile(source, target)
            target.chmod(0o755 if info.st_mode & stat.S_IXUSR else 0o644)


def _shareable(info: os.stat_result) -> bool:
    """Readable by all, writable by its owner only, without set-user-id: the modes that the image wants.

    The mode of a shared inode is never changed, because it is the environment's file too.
    """
    return stat.S_IMODE(info.st_mode) in (0o644, 0o755, 0o444, 0o555)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or a kernel that protects hard links to other people's files
        return False
    return True


def _stdlib_files(stdlib: Path) -> Iterator[tuple[str, Path]]:
    for folder, names, files in os.walk(stdlib):
        names[:] = sorted(n for n in names if n not in _STDLIB_WITHOUT and not n.startswith("config-"))
        for name in sorted(files):
            path = Path(folder, name)
            unwanted = path.parent.name == "lib-dynload" and name.startswith(_MODULES_WITHOUT)
            if not unwanted and name not in ("sitecustomize.py", "EXTERNALLY-MANAGED") and path.suffix != ".pyc":
                yield f"{_STDLIB}/{path.relative_to(stdlib)}", path


def _trusted_files() -> Iterator[tuple[str, Path]]:
    package = Path(cloister.__file__).parent
    top = (p for p in package.iterdir() if p.is_file() and p.name != "__main__.py")
    below = (p for name in _TRUSTED for p in (package / name).rglob("*") if p.is_file())
    for path in sorted((*top, *below)):
        relative = path.relative_to(package)
        wanted = relative.as_posix() not in _WITHOUT and "/".join(relative.parts[:2]) not in _WITHOUT
        if wanted and path.suffix in (".py", ".typed", ".json", ".pem", ".txt"):
            yield f"{LIBRARY[1:]}/cloister/{relative}", path


def _add_packages(tree: _Tree, roots: Iterable[str]) -> None:
    for dist in closure(roots):
        files = wheel_files(dist)
        for relative, source in files:
            tree.file(f"{LIBRARY[1:]}/{relative}", source)
        info = next((r.split("/")[0] for r, _ in files if r.split("/")[0].endswith(".dist-info")), None)
        if info is not None:
            tree.text(f"{LIBRARY[1:]}/{info}/RECORD", record_text(info, (r for r, _ in files)))


def _add_interpreter(tree: _Tree) -> None:
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    tree.file(PYTHON[1:], base)
    for relative, source in _stdlib_files(Path(sysconfig.get_path("stdlib"))):
        tree.file(relative, source)
    path = [f"/{_STDLIB}", f"/{_STDLIB}/lib-dynload", LIBRARY]
    # Not a .pth file: those add to the path, and the path must be exactly this.
    tree.text(f"{_STDLIB}/sitecustomize.py", f"import sys\n\nsys.path[:] = {path!r}\nsys.dont_write_bytecode = True\n")
    loader = read_elf(base)
    if loader is None or loader.interpreter is None:
        raise Misuse("image.python", f"{base} is not a dynamically linked 64-bit program; use a Linux system Python.")
    tree.file(f"usr/lib/{os.path.basename(loader.interpreter)}", Path(loader.interpreter))


def _add_libraries(tree: _Tree) -> None:
    shared = [p for p in tree.root.rglob("*") if ".so" in p.name and p.is_file()]
    bundled = frozenset(p.name for p in shared if p.is_relative_to(tree.root / LIBRARY[1:]))
    programs = [tree.root / PYTHON[1:], *(tree.root / LIBRARY[1:] / "torch/bin").glob("*")]
    for name, source in sorted(system_libraries([*programs, *shared], bundled, Path(sys.base_prefix)).items()):
        if not (tree.root / "usr/lib" / name).exists():
            tree.file(f"usr/lib/{name}", source)


def _compile_part(root: Path, files: list[Path]) -> None:
    python = getattr(sys, "_base_executable", sys.executable)
    command = [python, "-I", "-S", "-m", "compileall", "-q", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(root), "-p", "/", "-i", "-"]
    listing = "".join(f"{f}\n" for f in files).encode()
    # Exit status 1 means that some file has a syntax error: templates, and code for other versions of Python.
    done = subprocess.run(command, input=listing, env={}, umask=0o022, capture_output=True, check=False)
    if done.returncode not in (0, 1) or done.stderr:
        raise Internal("image.compile", "Compiling the image's bytecode failed; is the interpreter complete?")


def _compile(tree: _Tree) -> None:
    files = sorted(p for p in tree.root.rglob("*.py") if p.is_file())
    parts = [files[i::_COMPILE_PARTS] for i in range(_COMPILE_PARTS)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(_compile_part, tree.root, part) for part in parts if part]:
            done.result()


def _fill(tree: _Tree, roots: tuple[str, ...]) -> None:
    tree.folder("usr/lib")
    tree.folder("usr/bin")
    for name, target in _LINKS.items():
        (tree.root / name).symlink_to(target)
    for name in _MOUNT_POINTS:
        tree.folder(name)
    for name, text in _ETC.items():
        tree.text(f"etc/{name}", text)
    _add_interpreter(tree)
    _add_packages(tree, roots)
    for relative, source in _trusted_files():
        tree.file(relative, source, link=False)  # an editor that writes in place must not change the image
    _add_libraries(tree)
    _compile(tree)


def image_stamp() -> str:
    """A digest of what an image would be built from now: every source's name, size and time, and our own code.

    It only says whether building again could give another image. What an image is, its measurement says.
    """
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    sources = [(PYTHON, base), *_stdlib_files(Path(sysconfig.get_path("stdlib")))]
    for dist in closure((*BASE, *train_requirements())):
        sources += wheel_files(dist)
    lines = []
    for name, path in sources:
        info = path.stat()
        lines.append(frame(name, str(path), info.st_size, str(info.st_mtime_ns)))
    lines += [frame(name, path.read_bytes()) for name, path in (*_trusted_files(), ("builder", Path(__file__)))]
    return sha256(frame(*lines)).hex()


def build_image(
    dest: Path, *, extra_packages: tuple[str, ...] = (), train: bool = True, hardlinks: bool = True
) -> Path:
    """Build the image at ``dest``, which must not exist; return it. It appears complete or not at all.

    ``extra_packages``: further distributions of the running environment, with what they require. ``train=False``
    leaves the machine-learning packages out. Raises Misuse if something is missing, unreadable or in the way.
    """
    dest = Path(os.path.abspath(dest))
    if dest.exists():
        raise Misuse("image.exists", f"{dest} exists; give a new folder, an image is never changed in place.")
    roots = (*BASE, *(train_requirements() if train else ()), *extra_packages)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
        try:
            work.chmod(0o755)
            _fill(_Tree(work, hardlinks), roots)
            work.rename(dest)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except PermissionError as error:
        raise Misuse(
            "image.unreadable",
            f"{error.filename} can't be read or written by user {os.geteuid()}; build the image as root, or install"
            " Python and the environment in a folder that this user can read.",
        ) from None
    return dest
