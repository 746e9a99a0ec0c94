"""Which version is installed, and which verbs it can run."""

import platform
from importlib.metadata import PackageNotFoundError, entry_points, version

from samix.cli import missing_packages
from services.doctor.findings import Finding, ok, warning


def check_installation() -> Finding:
    """Tell versions, and what would have to be installed for the verbs that are missing."""
    try:
        told = f"samix-service {version('samix-service')}, Python {platform.python_version()}"
    except PackageNotFoundError:
        return warning("installation", "samix is run from its sources", "pip install -e . brings its verbs")
    lacking = {verb.name: verb.extras for verb in entry_points(group="samix.commands") if missing_packages(verb)}
    if not lacking:
        return ok("installation", f"{told}, all verbs")
    extras = ",".join(sorted({extra for needed in lacking.values() for extra in needed}))
    verbs = ", ".join(sorted(lacking))
    return ok("installation", f"{told}; without {verbs} (pip install 'samix-service[{extras}]')")
