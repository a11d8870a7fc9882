# Runs a server until its owner goes away, however it goes: the owner holds the other end of this script's
# standard input, and the end of that input is the sign.
#
#   $1  the server's folder, removed at the end      $2  its log      the rest: the program
#
# Prints the server's process id. The line `keep` on the input ends the server too, but keeps the folder.
folder=$1
log=$2
shift 2
"$@" </dev/null >>"$log" 2>&1 &
server=$!
echo "$server"
exec >/dev/null 2>&1
if read -r line && [ "$line" = keep ]; then
    kill -KILL "$server"
    wait "$server"
    exit 0
fi
# Postgres ends its children on QUIT; a paused server must be continued to hear it.
kill -QUIT "$server"
kill -CONT "$server"
(sleep 2; kill -KILL "$server") &
killer=$!
wait "$server"
kill "$killer"
rm -rf "$folder" || { sleep 1; rm -rf "$folder"; }
