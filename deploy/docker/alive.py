"""Check that the service in this container is alive, by its /healthz on loopback. HEALTHCHECK names the service and its default port."""

import os
import ssl
import sys
import urllib.request

service, default = sys.argv[1:]
port = int(os.environ.get(f"{service.upper()}_SERVICE_PORT") or default)
scheme = "https" if os.environ.get("TLS_CERT_FILE") else "http"
# The certificate is for the public host name, not 127.0.0.1, and the request is not secret.
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
with urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/healthz", timeout=2, context=context) as answer:  # noqa: S310 - loopback
    sys.exit(answer.status != 200)
