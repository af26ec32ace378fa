#!/usr/bin/env bash
# A shared MLflow server: PostgreSQL for the runs and users, a folder for artifacts, users with passwords.
#
#   tools/mlflow_server.sh start|stop|status FOLDER
#
# In the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, the administrator's (start and status);
# MLFLOW_HOST (127.0.0.1), MLFLOW_PORT (5000), MLFLOW_WORKERS (4), as MLflow itself has them; PYTHON (.venv/bin/python of this project, or python3), in whose
# environment qat-pipeline[server] is installed.
#
# Everything lies in FOLDER: postgres/ (data and socket), artifacts/, auth.ini and secret_key (0600), mlflow.log,
# postgres.log. PostgreSQL listens on its socket alone and knows its one client by the user of the operating system
# ("peer"), so there is no password between the two, and none is ever on a command line or in a log.
set -euo pipefail
umask 077

fail() { echo "error: $*" >&2; exit 2; }

[ $# -eq 2 ] || fail "usage: tools/mlflow_server.sh start|stop|status FOLDER"
action=$1
host=${MLFLOW_HOST:-127.0.0.1} port=${MLFLOW_PORT:-5000} workers=${MLFLOW_WORKERS:-4}
[[ $port =~ ^[0-9]{1,5}$ && $workers =~ ^[0-9]{1,3}$ ]] || fail "MLFLOW_PORT=$port MLFLOW_WORKERS=$workers: allowed: numbers"
project=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$project/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3) || fail "no python3; PYTHON names one"
# It becomes part of a URI and of the path of a socket, which the operating system cuts at 107 bytes.
[[ $2 =~ ^[A-Za-z0-9._/-]{1,200}$ ]] || fail "$2: allowed: a folder of letters, digits and . _ - /"
[ "$action" = start ] && mkdir -p "$2"
[ -d "$2" ] || fail "$2: there is no such folder; start makes it"
folder=$(cd "$2" && pwd)
[ ${#folder} -le 80 ] || fail "$folder: longer than the 80 characters that the path of a socket leaves"
data=$folder/postgres/data socket=$folder/postgres

# PostgreSQL refuses to run as root, and is then the user postgres, who need not know the administrator's password.
if [ "$(id -u)" -eq 0 ]; then
  owner=postgres run_as_owner=(runuser -u postgres --)
else
  owner=$(id -un) run_as_owner=()
fi
as_owner() {
  (cd / && unset MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD && ${run_as_owner[@]+"${run_as_owner[@]}"} "$@")
}

find_postgres() {
  local newest
  newest=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
  [ -n "$newest" ] || fail "no PostgreSQL in /usr/lib/postgresql; apt-get install postgresql"
  bin=$newest
}

database() { echo "postgresql+psycopg2://mlflow@/$1?host=$socket"; }

# The file has the process's number, when it began (a number is given again, to processes that are not ours), and the
# server's address.
began() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

alive() {
  local pid='' at='' _
  [ -f "$folder/mlflow.pid" ] && read -r pid at _ < "$folder/mlflow.pid"
  [ -n "$at" ] && [ "$(began "$pid")" = "$at" ]
}

postgres_alive() { as_owner "$bin/pg_ctl" status -D "$data" >/dev/null 2>&1; }

make_postgres() { # once: the data, who may connect, a role that owns two databases and nothing else
  install -d -m 755 "$folder"
  [ "$owner" = "$(id -un)" ] || chown "$owner" "$folder/postgres"
  as_owner test -w "$folder/postgres" ||
    fail "$folder: the user $owner cannot get there; allowed: a folder whose parents all users may enter"
  as_owner "$bin/initdb" -D "$data" -U "$owner" -E UTF8 --locale=C.UTF-8 --auth=peer >/dev/null
  as_owner tee "$data/pg_hba.conf" >/dev/null <<< "local all all peer map=folder"
  printf 'folder %s %s\nfolder %s mlflow\n' "$owner" "$owner" "$(id -un)" | as_owner tee "$data/pg_ident.conf" >/dev/null
}

start_postgres() {
  local fresh=false
  if [ ! -f "$data/PG_VERSION" ]; then
    mkdir -p "$folder/postgres"
    make_postgres
    fresh=true
  fi
  if ! postgres_alive; then
    as_owner "$bin/pg_ctl" start -w -t 60 -D "$data" -l "$folder/postgres/postgres.log" \
      -o "-c listen_addresses='' -c unix_socket_directories='$socket' -c unix_socket_permissions=0777" >/dev/null ||
      fail "PostgreSQL does not start; $folder/postgres/postgres.log says why"
  fi
  if $fresh; then
    as_owner "$bin/createuser" -h "$socket" -U "$owner" mlflow
    for name in mlflow mlflow_auth; do
      as_owner "$bin/createdb" -h "$socket" -U "$owner" -O mlflow "$name"
    done
  fi
}

write_secrets() { # the administrator's password goes to MLflow in its environment, not into the file
  [ -s "$folder/secret_key" ] || head -c 32 /dev/urandom | base64 > "$folder/secret_key"
  # Checking a password is dear on purpose (scrypt, 0.1 s of a processor a request): each worker remembers it for 30 s.
  printf '[mlflow]\ndefault_permission = READ\ndatabase_uri = %s\nauth_cache_ttl_seconds = 30\nadmin_username = %s\n' \
    "$(database mlflow_auth)" "${MLFLOW_TRACKING_USERNAME//%/%%}" > "$folder/auth.ini"
  chmod 600 "$folder/auth.ini" "$folder/secret_key"
}

# What the server answers to a request with the user and password of the environment, or (with "anonymous") without.
answer() {
  "$python" - "http://$host:$port/api/2.0/mlflow/experiments/search?max_results=1" "${1:-}" <<'PYTHON' 2>/dev/null || true
import base64, os, sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1])
if sys.argv[2] != "anonymous":
    pair = f"{os.environ['MLFLOW_TRACKING_USERNAME']}:{os.environ['MLFLOW_TRACKING_PASSWORD']}"
    request.add_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
try:
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print("none")
PYTHON
}

start() {
  [ -n "${MLFLOW_TRACKING_USERNAME:-}" ] && [ -n "${MLFLOW_TRACKING_PASSWORD:-}" ] ||
    fail "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to the administrator's (12 characters or more)"
  [ ${#MLFLOW_TRACKING_PASSWORD} -ge 12 ] || fail "MLFLOW_TRACKING_PASSWORD: allowed: 12 characters or more"
  # MLflow reads others where runs are, and refuses them where files are.
  [[ $(LC_ALL=C; printf %s "$MLFLOW_TRACKING_USERNAME$MLFLOW_TRACKING_PASSWORD" | tr -d '\040-\176' | wc -c) -eq 0 ]] ||
    fail "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD: allowed: printable characters of ASCII"
  find_postgres
  if alive; then # PostgreSQL alone may have ended
    ! postgres_alive || fail "$folder: the server is running already (process $(cut -d' ' -f1 "$folder/mlflow.pid"))"
    start_postgres
    echo "PostgreSQL started again ($folder)"
    return
  fi
  [ "$(answer anonymous)" = none ] || fail "MLFLOW_PORT=$port: another server answers there"
  "$python" -c 'import psycopg2, flask_wtf, mlflow' 2>/dev/null ||
    fail "$python: qat-pipeline[server] is not installed: pip install -e '.[server]'"
  case $host in
    127.* | localhost | ::1) ;;
    *) echo "warning: MLFLOW_HOST=$host: passwords will go over the network as plain HTTP; docs/server.md has a proxy" >&2 ;;
  esac
  start_postgres
  write_secrets
  mkdir -p "$folder/artifacts"
  # In its own session, so that neither the terminal nor Ctrl-C ends it; stop ends the whole group.
  (
    cd "$folder"
    export MLFLOW_AUTH_CONFIG_PATH=$folder/auth.ini MLFLOW_FLASK_SERVER_SECRET_KEY
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat secret_key)
    export MLFLOW_AUTH_ADMIN_USERNAME=$MLFLOW_TRACKING_USERNAME MLFLOW_AUTH_ADMIN_PASSWORD=$MLFLOW_TRACKING_PASSWORD
    # Of a client they are; MLflow's jobs and its reports to its makers are not needed.
    unset MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_URI
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
    setsid "$python" -m mlflow server --app-name basic-auth --host "$host" --port "$port" --workers "$workers" \
      --backend-store-uri "$(database mlflow)" \
      --serve-artifacts --artifacts-destination "$folder/artifacts" >> mlflow.log 2>&1 < /dev/null &
    echo "$! $(began $!) http://$host:$port" > mlflow.pid
  )
  for _ in $(seq 240); do
    alive || { rm -f "$folder/mlflow.pid"; fail "MLflow does not start; $folder/mlflow.log says why"; }
    case $(answer) in
      200)
        [ "$(answer anonymous)" = 401 ] || { stop; fail "the server answers without a password: it was stopped"; }
        echo "http://$host:$port ($folder)"
        return ;;
      401) stop; fail "MLFLOW_TRACKING_PASSWORD: not that of $MLFLOW_TRACKING_USERNAME in $folder; the first start sets it" ;;
    esac
    sleep 0.5
  done
  stop
  fail "MLflow does not answer after two minutes; $folder/mlflow.log says why"
}

stop() {
  find_postgres
  if alive; then
    local pid
    pid=$(cut -d' ' -f1 "$folder/mlflow.pid")
    kill -TERM -- "-$pid" 2>/dev/null || true
    for _ in $(seq 100); do alive || break; sleep 0.1; done
    kill -KILL -- "-$pid" 2>/dev/null || true
  fi
  rm -f "$folder/mlflow.pid"
  if [ -f "$data/PG_VERSION" ] && postgres_alive; then
    as_owner "$bin/pg_ctl" stop -w -m fast -D "$data" >/dev/null
  fi
}

status() {
  find_postgres
  local mlflow=stopped postgres=stopped
  alive && mlflow="running on $(cut -d' ' -f3 "$folder/mlflow.pid")"
  [ -f "$data/PG_VERSION" ] && postgres_alive && postgres=running
  echo "MLflow: $mlflow"
  echo "PostgreSQL: $postgres"
  [ "$mlflow" != stopped ] && [ "$postgres" = running ]
}

case $action in
  start) start ;;
  stop) stop ;;
  status) status ;;
  *) fail "$action: allowed: start, stop, status" ;;
esac
