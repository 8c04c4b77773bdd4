#!/bin/sh
# Runs the tests and names those that failed in its last lines: contrib/test.sh cargo test --no-fail-fast
#
# They write to a file, which is shown as it grows, and not to the terminal or pipe of this script: a process that a test
# leaves would hold that, and its reader would wait for the end of that process. The exit status is that of the command.
set -u

if [ $# = 0 ]; then
    echo "usage: $0 COMMAND…" >&2
    exit 2
fi
dir=${CARGO_TARGET_DIR:-target}
mkdir -p "$dir"
log=$dir/tests.log
: > "$log" || exit 1
echo "$*"
if [ -t 1 ]; then
    export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-always}"
fi

# What shows the file ends after this process, once it has shown all that was written until then.
sleep 2147483647 >/dev/null 2>&1 &
until=$!
trap 'kill "$until" 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
tail -n +1 -s 0.2 --pid="$until" -f "$log" 2>/dev/null &
shown=$!
"$@" >> "$log" 2>&1
status=$?
kill "$until"
wait "$shown" 2>/dev/null

# Of libtest and of libtest-mimic: "test name ... FAILED", below the line of cargo that names the program.
failed=$(tr -d '\033' < "$log" | sed 's/\[[0-9;]*m//g' | awk '
    / Running / { sub(/^ *Running (unittests )?/, ""); sub(/ \(.*/, ""); file = $0 }
    / Doc-tests / { file = "documentation" }
    /^test .* \.\.\. FAILED/ { sub(/^test /, ""); sub(/ *\.\.\. FAILED.*/, ""); print "  " file ": " $0 }
')
if [ -n "$failed" ]; then
    printf '\nThese tests failed (all that they said is in %s):\n%s\n' "$log" "$failed"
elif [ "$status" != 0 ]; then
    printf '\nThe tests did not run to their end (status %s); see %s\n' "$status" "$log"
fi
exit "$status"
