# Installs a worker of aimesh from @MESH@ into your profile, without administrator rights: it shares servers that run here, such as Ollama.
# $env:AIMESH_TICKET has its ticket. All packages are checked against the hashes below.
# Not run by us: we have no Windows. To remove everything, delete the folder aimesh in $env:LOCALAPPDATA.
& {
    $ErrorActionPreference = 'Stop'
    $ticket = $env:AIMESH_TICKET
    Remove-Item Env:AIMESH_TICKET -ErrorAction Ignore
    if ($ticket -notlike 'aip_join_*') { throw 'this is no ticket: $env:AIMESH_TICKET must start with aip_join_' }
    $version = py -3 -c "import sys; v = sys.version_info; v < (3, 11) and sys.exit(1); print('%d.%d' % v[:2])"
    if ($LASTEXITCODE) { throw 'it needs Python 3.11 or later: winget install Python.Python.3.13' }
    if ('@READY@' -split ' ' -notcontains "front-windows-amd64-$version") { throw "the mesh has no packages for Windows with Python $version" }

    $root = Join-Path $env:LOCALAPPDATA 'aimesh'
    $app = Join-Path $root ('app-front-' + '@FRONT_SHA256@'.Substring(0, 12) + "-$version")
    $work = Join-Path $root 'download'
    New-Item -ItemType Directory -Force $work | Out-Null
    foreach ($file in @{ 'front.txt' = '@FRONT_SHA256@'; '@PIP@' = '@PIP_SHA256@' }.GetEnumerator()) {
        $path = Join-Path $work $file.Key
        Invoke-WebRequest -UseBasicParsing -TimeoutSec 300 "@BASE@/$($file.Key)" -OutFile $path
        if ((Get-FileHash $path -Algorithm SHA256).Hash -ne $file.Value) { throw "$($file.Key) has another hash than this script says" }
    }
    if (-not (Test-Path "$app\complete")) {
        py -3 -m venv --clear --without-pip $app
        & "$app\Scripts\python" "$work\@PIP@\pip" --isolated --disable-pip-version-check install --quiet --no-cache-dir --no-deps `
            --require-hashes --only-binary :all: --index-url '@INDEX@' --trusted-host ([uri]'@INDEX@').Host -r "$work\front.txt"
        if ($LASTEXITCODE) { throw 'pip failed, as it says above; run the same line again' }
        New-Item -ItemType File "$app\complete" | Out-Null
    }
    Remove-Item -Recurse -Force $work
    $ticket | & "$app\Scripts\aicli" worker --join - --no-serve
    Write-Host "To see what this machine can share, and to share all of it: & '$app\Scripts\aicli' worker --share all"
}
