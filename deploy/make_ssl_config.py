"""PEM files -> the SSLConfig text that TensorFlow Serving and the embedded server read with --ssl_config_file.

python deploy/make_ssl_config.py --key server.key --certificate server.crt [--client-ca ca.crt] --output ssl.config

The output holds the private key: it is made readable by its owner only, and never overwritten.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Writes the file; 2 when something is missing or already there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", type=Path, required=True, help="the server's private key")
    parser.add_argument("--certificate", type=Path, required=True, help="the server's certificate, with its chain")
    parser.add_argument("--client-ca", type=Path, help="who signs the clients' certificates; turns mutual TLS on")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    fields = [
        ("server_key", options.key),
        ("server_cert", options.certificate),
        *([("custom_ca", options.client_ca)] if options.client_ca else []),
    ]
    lines = []
    try:
        for name, path in fields:
            text = path.read_text(encoding="ascii")
            if "-----BEGIN " not in text:
                sys.stderr.write(f"{path}: expected PEM text (-----BEGIN ...), which it has not.\n")
                return 2
            quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            lines.append(f'{name}: "{quoted}"\n')
        lines.append(f"client_verify: {'true' if options.client_ca else 'false'}\n")
        with os.fdopen(os.open(options.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
            stream.writelines(lines)
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{getattr(error, 'filename', None) or path}: {getattr(error, 'strerror', None) or error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
