#!/usr/bin/env bash
# A real Slurm on this machine alone, to try sweeps on a cluster: munged, a controller and two node daemons.
#
#   tools/slurm.sh start [FOLDER]             then, in the shell of the sweep:  export SLURM_CONF=FOLDER/slurm.conf
#   tools/slurm.sh status [FOLDER]
#   tools/slurm.sh kill-node NODE [FOLDER]    as if NODE lost its power: its daemon and all that runs under it
#   tools/slurm.sh start-node NODE [FOLDER]   NODE comes back
#   tools/slurm.sh stop [FOLDER]
#
# It needs Debian's packages slurm-wlm and munge, and root: a node's daemon starts each job as its user.
# Everything is in FOLDER (default /run/pipeline-slurm): configuration, key, sockets, logs. It is root's, and nobody
# else's to write to: who has its key may run anything as anybody. The daemons listen on 127.0.0.1 alone. There is no accounting database: sacct knows nothing here, squeue and scontrol do.
set -euo pipefail

NODES="node1 node2"

fail() {
  echo "error: $*" >&2
  exit 2
}

write_configuration() {
  local host processors memory_mb port
  host=$(hostname -s)
  processors=$(nproc --all) # without it, nproc believes OMP_NUM_THREADS
  memory_mb=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  # Ports that follow from the folder's name: several such clusters can run side by side.
  port=$((20000 + $(cksum <<<"$folder" | cut -d' ' -f1) % 3000 * 3))
  [ -d "$folder" ] || mkdir -m 755 -p "$folder"
  [ "$(stat -c %u "$folder")" = 0 ] && [ -z "$(find "$folder" -maxdepth 0 -perm /022)" ] ||
    fail "$folder: belongs to others, or they may write to it; allowed: a folder of root's, or a new one"
  mkdir -p "$folder"/{munge,state,spool,log}
  # munged wants a socket that everyone can reach, in folders that only its owner can write to.
  chmod 755 "$folder" "$folder/munge"
  [ -f "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
  cat >"$folder/slurm.conf" <<CONFIGURATION
# The controller: this machine, reached at 127.0.0.1 and bound to that address alone, as the nodes are.
ClusterName=pipeline
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
# All daemons run as root: there is no user slurm to be had everywhere.
SlurmUser=root
SlurmdUser=root

# Who may talk: whoever holds the key of our own munged. A job that was queued again waits until its earlier
# credential has expired: 10 s here, 120 s on clusters.
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=10

# Every file in this folder; %n is the node's name, so that two daemons on one machine keep apart.
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log

# Jobs are followed by their parents in /proc and bound to nothing: cgroups are the real machine's affair.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Believe the numbers below instead of counting processors: both nodes have all of them.
SlurmdParameters=config_overrides
# A job takes as many processors as it asks for, and shares its node with others.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none

# A job whose node is lost is queued again.
JobRequeue=1
# Seconds of silence after which a node counts as lost (clusters: 300), and a node that comes back is used again.
SlurmdTimeout=20
ReturnToService=2
# Seconds from SIGTERM to SIGKILL when a job is cancelled.
KillWait=30
# Seconds for which squeue remembers jobs that ended.
MinJobAge=300
# Plan every 2 s: nobody waits for a queue here.
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
# A job of partition urgent takes the place of one of main, which gets SIGTERM, 20 s, and the end of the queue.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

# How each job ended, one line each: instead of an accounting database.
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/jobs.txt

NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=$processors RealMemory=$memory_mb
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=$processors RealMemory=$memory_mb
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=node1,node2 MaxTime=INFINITE PriorityTier=2
CONFIGURATION
}

running() { # whether the process of this pid file lives, and is this program: a number is given again to others
  [ -f "$1" ] && [ "$(cat "/proc/$(cat "$1" 2>/dev/null)/comm" 2>/dev/null)" = "$2" ]
}

check_node() {
  case " $NODES " in *" $1 "*) ;; *) fail "'$1' is no node; allowed: ${NODES// /, }" ;; esac
}

start_node() {
  ! running "$folder/$1.pid" slurmd || fail "$1 is running already"
  mkdir -p "$folder/spool/$1"
  slurmd -N "$1" # one machine can be several nodes: each daemon is told which it is
}

start() {
  for program in munged slurmctld slurmd srun; do
    command -v "$program" >/dev/null || fail "there is no $program here: apt-get install slurm-wlm munge"
  done
  [ "$(id -u)" = 0 ] || fail "a node's daemon starts each job as its user: run this as root"
  ! running "$folder/slurmctld.pid" slurmctld || fail "a Slurm is running in $folder already"
  write_configuration
  # --force: munged would rather not be root.
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" 2>>"$folder/log/munged.log"
  slurmctld
  for node in $NODES; do start_node "$node"; done
  for _ in $(seq 60); do
    if [ "$(sinfo --noheader --Node --partition=main --states=idle 2>/dev/null | wc -l)" = 2 ]; then
      echo "two nodes are up; now type: export SLURM_CONF=$folder/slurm.conf"
      return
    fi
    sleep 0.5
  done
  fail "the nodes are not up after 30 s; $folder/log tells why"
}

# The node's daemon, then its slurmstepds, one for each job step (children of nobody, known by the node's files that
# they hold open), then whatever these have started (known by its environment). This order: a slurmstepd that sees its
# job die would report a failed job instead of falling silent with its node.
processes_of() {
  local process
  if running "$folder/$1.pid" slurmd; then cat "$folder/$1.pid"; fi
  for process in $(pgrep -f '^slurmstepd' || true); do
    if find "/proc/$process/fd" -lname "$folder/*$1*" 2>/dev/null | grep -q .; then echo "$process"; fi
  done
  for process in /proc/[0-9]*; do
    if grep -qzx "SLURMD_NODENAME=$1" "$process/environ" 2>/dev/null &&
      grep -qzx "SLURM_CONF=$folder/slurm.conf" "$process/environ" 2>/dev/null; then
      basename "$process"
    fi
  done
}

kill_node() {
  local processes
  processes=$(processes_of "$1")
  # shellcheck disable=SC2086
  kill -KILL $processes 2>/dev/null || true
  rm -f "$folder/$1.pid"
  echo "$1 is lost: $(wc -w <<<"$processes") processes killed"
}

stop() {
  for node in $NODES; do kill_node "$node" >/dev/null; done
  if running "$folder/slurmctld.pid" slurmctld; then kill "$(cat "$folder/slurmctld.pid")" 2>/dev/null || true; fi
  if running "$folder/munge/pid" munged; then kill "$(cat "$folder/munge/pid")" 2>/dev/null || true; fi
  for _ in $(seq 20); do
    if ! running "$folder/slurmctld.pid" slurmctld && ! running "$folder/munge/pid" munged; then break; fi
    sleep 0.5
  done
  echo "stopped; $folder can be removed"
}

action=${1:-}
case "$action" in
  start | stop | status) folder=${2:-} ;;
  kill-node | start-node)
    check_node "${2:-}"
    folder=${3:-}
    ;;
  *) fail "'$action': allowed: start, status, kill-node NODE, start-node NODE or stop, each with a FOLDER at the end" ;;
esac
folder=$(realpath -m "${folder:-/run/pipeline-slurm}")
[ "$action" = start ] || [ -f "$folder/slurm.conf" ] || fail "there is no Slurm in $folder; start makes one"
export SLURM_CONF="$folder/slurm.conf" # which of all clusters slurmctld, slurmd, sinfo and squeue mean
case "$action" in
  start) start ;;
  stop) stop ;;
  status)
    sinfo --Node --long
    squeue --array --long
    ;;
  kill-node) kill_node "$2" ;;
  start-node) start_node "$2" ;;
esac
