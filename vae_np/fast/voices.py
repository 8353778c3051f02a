"""Processes that mpiexec has started speak as one: the first prints, errors name their process, and the dead have one.

Whoever is killed cannot say so, and mpiexec kills the others with him. So a witness stands beside them: this file, run
as a program of its own, to which all are connected. A connection that ends without a word is that of the dead.
"""

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import time

SILENCE = "\0"  # what ends all that the witness has to do
joined, witness, advice = False, None, ""  # whether others wait; a connection; what an error's line ends with


def launched(*names):
    """The number that a launcher has set under the first of these names that there is, 0 without a launcher."""
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def started():
    """How many processes the launcher has started: mpich's, Open MPI's, or SLURM's with PMIx; 0 without one."""
    tasks = launched("SLURM_STEP_NUM_TASKS") if "PMIX_RANK" in os.environ else 0
    return launched("PMI_SIZE", "OMPI_COMM_WORLD_SIZE") or (tasks if tasks > 1 else 0)


def rank():
    """The number of this process among those that were started, 0 for the first and where there is no other."""
    return launched("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK") if started() else 0


class Voice:
    """sys.stderr of one of several processes: of the first all, of the others what starts with "error: ", and who."""

    def __getattr__(self, name):
        return getattr(sys.__stderr__, name)

    def write(self, text):
        """Write text, or not."""
        if text.startswith("error: ") and (joined or not rank()):
            if rank():
                time.sleep(1)  # where all fail alike, the first says so, and the others are gone before they do
            tell(SILENCE)
            text = f"{chr(10) * (rank() > 0)}error: rank {rank()} of {started()}: {text[7:].rstrip()}{advice}\n"
        elif rank() and os.environ.get("VAE_DEBUG") != "1":
            return
        sys.__stderr__.write(text)


def speak_as_one():
    """From now on only what the first process prints is seen, and errors. Without mpiexec nothing changes."""
    if started():
        sys.stderr = Voice()
        if rank():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, as it stays open


def tell(word):
    """Tell the witness how to go on, or SILENCE."""
    if witness:
        with contextlib.suppress(OSError):
            witness.send(word.encode())


def advise(command):
    """From now on, the line of an error ends with a command to go on with."""
    global advice
    advice = f"; go on with: {command}"
    tell(advice)


def call_witness(comm):
    """Start the witness, which listens to this machine alone if all processes are here, and connect to it."""
    global joined, witness
    joined, names, port = True, comm.allgather(socket.gethostname()), None
    host = names[0] if len(set(names)) > 1 else "127.0.0.1"
    if rank() == 0:
        command = [sys.executable, "-I", __file__, host if host == "127.0.0.1" else "", str(started())]
        port = int(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sys.__stderr__,
                                    start_new_session=True).stdout.readline() or 0)
    with contextlib.suppress(OSError):  # then without one
        witness = socket.create_connection((host, comm.bcast(port)), timeout=20)
    tell(f"rank {rank()} of {started()} (PID {os.getpid()} on {names[rank()]})")


def bear_witness(host, count):
    """Print a port, wait for `count` processes, and then for the first that ends."""
    advice = ""
    with socket.create_server((host, 0)) as server, selectors.DefaultSelector() as selector:
        print(server.getsockname()[1], flush=True)
        server.settimeout(60)
        with contextlib.suppress(TimeoutError):
            for _ in range(count):
                connection, _ = server.accept()
                selector.register(connection, selectors.EVENT_READ, connection.recv(200).decode())
        while True:
            for key, _ in selector.select():  # Linux and the BSDs name them in the order in which it happened
                word = ""
                with contextlib.suppress(ConnectionError):
                    word = key.fileobj.recv(10_000).decode()
                if not word:
                    sys.exit(f"\nerror: {key.data} was killed, or ended without a word{advice}")
                if word.endswith(SILENCE):
                    return
                advice = word


if __name__ == "__main__":
    bear_witness(sys.argv[1], int(sys.argv[2]))
