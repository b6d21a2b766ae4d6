def tag(env, ppid=None): return "x"
def local_task_count(env):
    import re
    out=[]
    for p in env["SLURM_STEP_TASKS_PER_NODE"].split(","):
        m=re.match(r"(\d+)(?:\(x(\d+)\))?$",p); out += [int(m[1])]*int(m[2] or 1)
    return out[int(env["SLURM_NODEID"])]
def task_name(env): return "t"
