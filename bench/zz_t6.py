import asyncio, sys, uvloop, subprocess, collections
from bench import tenants, http_load, report
from bench.http_load import *
from tests.stacks import stack
MODE=sys.argv[1]; NAME=sys.argv[2]
async def main():
    async with tenants.upstream() as up:
      async with stack(**tenants.UNLIMITED, **tenants.served_by(up), AIMESH_ECHO="1", LOG_LEVEL="warning") as running:
        keys=await tenants.register(running)
        pid=(await running.pids())[NAME]
        s=MODE=="stream"
        model = "instant" if NAME=="inference" else "echo"
        body=tenants.chat_body(model,"tok "*20, 20 if s else 2, stream=s)
        l=lambda n,sec: Load(port=tenants.gateway_port(running),path="/v1/chat/completions",keys=tuple(keys),body=body,pace=Steady(n,sec))
        o=await http_load.make(l(16,3)); print("warm", o.rate(), o.statuses, o.percentile(.5))
        py=asyncio.create_task(http_load.make(l(16,12)))
        await asyncio.sleep(1)
        p=await asyncio.create_subprocess_exec("/tmp/w/h/pyspy/bin/py-spy","record","-p",str(pid),"-r","250","-d","9","-f","raw","-o",f"/tmp/w/h/prof-{MODE}-{NAME}.txt",stderr=subprocess.DEVNULL,stdout=subprocess.DEVNULL)
        await p.wait()
        o=await py; print("prof", o.rate(), o.statuses, o.percentile(.5), o.percentile(.99))
uvloop.run(main())
