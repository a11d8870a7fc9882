# Runs a server until its owner ends, for whatever reason. The owner holds the other end of this script's standard
# input, and the end of that input tells the script that the owner is gone.
#
#   $1  the server's folder, removed at the end      $2  its log      the rest: the program
#
# Prints the server's process id. The line `keep` on the input also ends the server, but keeps the folder.
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
# On QUIT, Postgres ends its children. A paused server must be continued to receive the signal.
kill -QUIT "$server"
kill -CONT "$server"
(sleep 2; kill -KILL "$server") &
killer=$!
wait "$server"
kill "$killer"
rm -rf "$folder" || { sleep 1; rm -rf "$folder"; }
