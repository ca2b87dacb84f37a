"""Whether the service in this container is alive: asks its /healthz on loopback. Called by HEALTHCHECK with the port."""

import os
import ssl
import sys
import urllib.request

port = int(sys.argv[1])
scheme = "https" if os.environ.get("TLS_CERT_FILE") else "http"
# The certificate names the public host and not 127.0.0.1, and nothing secret is asked.
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
with urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/healthz", timeout=2, context=context) as answer:  # noqa: S310 - loopback
    sys.exit(answer.status != 200)
