"""node_agent.py POD...: what an agent of the node does for Pods with `redirect.mode: external`, from a privileged Pod that
shares the node's processes: runs, in the network namespace of each Pod, the command that docs/kubernetes.md gives.
"""
import ctypes
import os
import sys

COMMAND = ["leno-proxy", "redirect", "install", "--proxy-uid", "2102", "--exclude-inbound-ports", "4195"]


def sidecar(pod):
    """The process that is the Pod's sidecar."""
    wanted = f"LENO_WORKLOAD={pod}".encode()
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/comm") as name, open(f"/proc/{process}/environ", "rb") as environment:
                if name.read().strip() == "leno-proxy" and wanted in environment.read().split(b"\0"):
                    return process
        except (FileNotFoundError, ProcessLookupError):
            continue
    sys.exit(f"no sidecar of {pod} runs")


for pod in sys.argv[1:]:
    process = sidecar(pod)
    child = os.fork()
    if child == 0:
        network = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(network, 0) != 0:
            sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
        os.execv(f"/proc/{process}/root/usr/local/bin/leno-proxy", COMMAND)
    _, status = os.waitpid(child, 0)
    if status != 0:
        sys.exit(f"the redirect of {pod} was not installed: {os.waitstatus_to_exitcode(status)}")
    print(f"{pod}: redirected")
