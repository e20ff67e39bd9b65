"""Apache Kafka from its Maven artifacts: fetched once, kept in a cache folder, run by the Java that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ...bus.errors import ServerMissing

VERSION = "4.3.0"
SIZE = "43 MB"
CACHE_VARIABLE = "REFOLD_CACHE"
JAVA_REMEDY = "install a Java runtime of version 17 or later (Debian, Ubuntu: apt install openjdk-17-jre-headless)"
MAVEN_REMEDY = "install Maven to fetch it (Debian, Ubuntu: apt install maven)"
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>refold</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


def cache_folder() -> Path:
    """Return where fetched servers are kept: $REFOLD_CACHE, else refold in $XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refold"


def kafka_jars(*, fetch: bool = True) -> Path:
    """Return the folder of Kafka's jars; fetch them first where they are not here and `fetch` allows.

    Raises ServerMissing, with what to install.
    """
    jars = cache_folder() / f"kafka-{VERSION}"
    if not jars.is_dir():
        if not fetch:
            raise ServerMissing(f"Kafka {VERSION} is not in {jars}: `refold broker fetch kafka` gets it ({SIZE})")
        _fetch(jars)
    return jars


def java() -> str:
    """Return the java to use: of $JAVA_HOME, or on PATH. Raises ServerMissing."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None)
    if not found:
        raise ServerMissing(f"there is no java {f'in JAVA_HOME ({home})' if home else 'here'}: {JAVA_REMEDY}")
    return found


def _fetch(jars: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServerMissing(f"Kafka {VERSION} is not in {jars}, and there is no mvn here: {MAVEN_REMEDY}")
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars.parent) as place:
        pom, made = Path(place, "pom.xml"), Path(place, "jars")
        pom.write_text(_POM.format(version=VERSION), encoding="utf-8")
        command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={made}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode or not (made / f"kafka_2.13-{VERSION}.jar").is_file():
            said = (done.stdout + done.stderr).strip()[-1500:]
            raise ServerMissing(f"mvn could not fetch Kafka {VERSION} (it needs the network). It said:\n{said}")
        if not jars.exists():  # else another process was faster
            try:
                made.rename(jars)
            except OSError:
                if not jars.is_dir():
                    raise
