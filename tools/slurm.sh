#!/usr/bin/env bash
# A real Slurm on this machine alone, for trying sweeps on a cluster: munged, a controller, two node daemons, and
# accounting in a MariaDB, without which nobody learns of a job that died without a word.
#
#   tools/slurm.sh start [FOLDER]            # then, in the same shell:  export SLURM_CONF=FOLDER/slurm.conf
#   tools/slurm.sh status [FOLDER]
#   tools/slurm.sh kill-node NODE [FOLDER]   # as if NODE lost power: its daemon and all that runs under it
#   tools/slurm.sh start-node NODE [FOLDER]
#   tools/slurm.sh stop [FOLDER]
#
# It needs Debian's packages slurm-wlm, slurmdbd, munge and mariadb-server, and root: node daemons start jobs as their
# users. Everything it writes is in FOLDER (default /tmp/pipeline-slurm); every port is on 127.0.0.1.
set -euo pipefail

NODES="node1 node2"

fail() {
  echo "error: $*" >&2
  exit 2
}

write_configuration() {
  # The key that daemons and commands prove themselves with. munged insists on strict permissions.
  mkdir -p "$folder"/{munge,state,spool,log,mysql}
  chmod 755 "$folder" "$folder/munge"
  [ -f "$folder/munge/key" ] || (umask 077 && dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none)
  # Each node says it has as many processors as the machine has, so that together they run twice as many jobs.
  local processors memory_mb
  processors=$(nproc)
  memory_mb=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  cat >"$folder/slurm.conf" <<CONFIGURATION
ClusterName=pipeline
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log
# Both nodes are this machine: without cgroups, and with the processors that are written here, not those found.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
# A job of a node that is lost, or that is preempted, is queued again.
JobRequeue=1
# Seconds until a silent node counts as lost; clusters have 300.
SlurmdTimeout=15
KillWait=10
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass=$folder/munge/socket
JobAcctGatherType=jobacct_gather/none
NodeName=node1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=16821 CPUs=$processors RealMemory=$memory_mb
NodeName=node2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=16822 CPUs=$processors RealMemory=$memory_mb
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
CONFIGURATION
  (umask 077 && head -c 24 /dev/urandom | base64 >"$folder/mysql.password")
  (umask 077 && cat >"$folder/slurmdbd.conf") <<CONFIGURATION
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16836
StorageUser=slurm
StoragePass=$(cat "$folder/mysql.password")
StorageLoc=slurm
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/slurmdbd.pid
CONFIGURATION
}

start_accounting() {
  local socket=$folder/mysql/socket
  chown mysql "$folder/mysql"
  [ -d "$folder/mysql/mysql" ] || mariadb-install-db --user=mysql --datadir="$folder/mysql" >"$folder/log/mysql-install.log" 2>&1
  mariadbd --no-defaults --user=mysql --datadir="$folder/mysql" --socket="$socket" --pid-file="$folder/mysql/pid" \
    --bind-address=127.0.0.1 --port=16836 --innodb-lock-wait-timeout=900 >"$folder/log/mysql.log" 2>&1 &
  until_true 30 "MariaDB does not answer" mariadb-admin --no-defaults --socket="$socket" ping
  mariadb --no-defaults --socket="$socket" <<SQL
CREATE OR REPLACE USER slurm@'127.0.0.1' IDENTIFIED BY '$(cat "$folder/mysql.password")';
GRANT ALL ON slurm.* TO slurm@'127.0.0.1';
SQL
  SLURM_CONF=$folder/slurm.conf slurmdbd
  until_true 30 "slurmdbd does not answer" env SLURM_CONF="$folder/slurm.conf" sacctmgr --noheader show cluster
}

until_true() { # SECONDS MESSAGE COMMAND …
  local seconds=$1 message=$2
  shift 2
  for _ in $(seq $((2 * seconds))); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.5
  done
  fail "$message within $seconds s: see $folder/log"
}

start_node() {
  mkdir -p "$folder/spool/$1"
  SLURM_CONF=$folder/slurm.conf slurmd -N "$1"
}

start() {
  for program in munged slurmctld slurmd srun slurmdbd mariadbd; do
    command -v "$program" >/dev/null || fail "$program is missing: apt-get install slurm-wlm slurmdbd munge mariadb-server"
  done
  [ "$(id -u)" = 0 ] || fail "node daemons start jobs as their users: run this as root"
  ! running slurmctld || fail "a Slurm runs in $folder already"
  write_configuration
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"
  start_accounting
  SLURM_CONF=$folder/slurm.conf slurmctld
  for node in $NODES; do start_node "$node"; done
  until_true 30 "the nodes are not up" both_idle
  echo "two nodes are up; type: export SLURM_CONF=$folder/slurm.conf"
}

both_idle() {
  [ "$(SLURM_CONF=$folder/slurm.conf sinfo --noheader --Node --states=idle | wc -l)" = 2 ]
}

running() { # whether a daemon of this folder runs
  [ -f "$folder/$1.pid" ] && kill -0 "$(cat "$folder/$1.pid")" 2>/dev/null
}

descendants() {
  local child
  for child in $(pgrep -P "$1"); do
    descendants "$child"
    echo "$child"
  done
}

# Job steps are no children of the daemon: each has a slurmstepd of its own, which names its node's spool folder.
processes_of_node() {
  local step
  [ ! -f "$folder/$1.pid" ] || cat "$folder/$1.pid"
  for step in $(pgrep -x slurmstepd); do
    if ls -l "/proc/$step/fd" 2>/dev/null | grep -q "$folder/\(spool/$1\|log/$1.log\)"; then
      echo "$step"
      descendants "$step"
    fi
  done
}

kill_node() {
  local processes
  case " $NODES " in *" $1 "*) ;; *) fail "$1: no such node; allowed: $NODES" ;; esac
  processes=$(processes_of_node "$1")
  # shellcheck disable=SC2086
  kill -KILL $processes 2>/dev/null || true
  rm -f "$folder/$1.pid"
  echo "$1 is dead: $(echo "$processes" | wc -w) processes killed"
}

stop() {
  for node in $NODES; do kill_node "$node" >/dev/null; done
  for pid_file in slurmctld.pid slurmdbd.pid mysql/pid munge/pid; do
    [ ! -f "$folder/$pid_file" ] || kill "$(cat "$folder/$pid_file")" 2>/dev/null || true
  done
  echo "stopped; $folder can be removed"
}

action=${1:-}
case "$action" in
  start | stop | status) folder=${2:-/tmp/pipeline-slurm} ;;
  kill-node | start-node)
    node=${2:-}
    [ -n "$node" ] || fail "$action: which node? allowed: $NODES"
    folder=${3:-/tmp/pipeline-slurm}
    ;;
  *) fail "'$action': allowed: start, status, kill-node NODE, start-node NODE, stop; each with a FOLDER at the end" ;;
esac
folder=$(realpath -m "$folder")
case "$action" in
  start) start ;;
  stop) stop ;;
  status) SLURM_CONF=$folder/slurm.conf sinfo --Node --long && SLURM_CONF=$folder/slurm.conf squeue --long ;;
  kill-node) kill_node "$node" ;;
  start-node) start_node "$node" ;;
esac
