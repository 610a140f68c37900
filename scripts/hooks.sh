#!/bin/sh
# Installs scripts/pre-commit as this clone's hook; a hook of your own is kept.
set -eu
hooks=$(git rev-parse --git-path hooks)
hook=$hooks/pre-commit
mkdir -p "$hooks"
if [ -e "$hook" ] && ! grep -q 'scripts/pre-commit' "$hook"; then
	echo "hooks: $hook is not ours; add 'sh scripts/pre-commit' to it yourself." >&2
	exit 1
fi
printf '#!/bin/sh\nexec sh scripts/pre-commit\n' >"$hook"
chmod +x "$hook"
echo "hooks: $hook runs scripts/pre-commit"
