"""The only room that imports Ray."""

import os

if "RAY_ADDRESS" not in os.environ:
    # Read once, when Ray is imported. Its name is misleading: "0" makes a cluster that starts here listen on the
    # loopback interface, on every system; without it Ray opens its ports to the network.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
