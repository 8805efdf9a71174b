package policy

api_version := "0.12.0"
framework_version := "0.5.0"

# Two containers of one image that differ in what may be executed in them, and a third that shares nothing.
containers := [
  {
    "name": "quiet", "command": ["serve"], "layers": ["aa", "bb"], "working_dir": "/",
    "env_rules": [{"pattern": "MODE=.+", "strategy": "re2", "required": true}],
    "exec_processes": [{"command": ["health"], "signals": [15]}],
    "signals": [15], "mounts": [{"destination": "/data", "type": "bind", "source": "sandbox:///volumes/.+", "options": ["rbind", "rw"]}],
    "user": {"umask": "0022", "user_idname": {"pattern": "1000", "strategy": "id"}, "group_idnames": [{"pattern": "www|web", "strategy": "re2"}]},
    "capabilities": null, "seccomp_profile_sha256": "", "allow_elevated": false, "no_new_privileges": true, "allow_stdio_access": false,
  },
  {
    "name": "debug", "command": ["serve"], "layers": ["aa", "bb"], "working_dir": "/",
    "env_rules": [{"name": "MODE", "name_strategy": "string", "value": "[a-z]+", "value_strategy": "re2", "required": true}],
    "exec_processes": [{"command": ["health"], "signals": []}, {"command": ["sh"], "signals": [9]}],
    "signals": [2, 15], "mounts": [{"destination": "/data", "type": "bind", "source": "sandbox:///volumes/.+", "options": ["rbind", "rw"]}],
    "user": {"umask": "0022", "user_idname": {"pattern": "1000", "strategy": "id"}, "group_idnames": [{"pattern": "www|web", "strategy": "re2"}]},
    "capabilities": null, "seccomp_profile_sha256": "", "allow_elevated": false, "no_new_privileges": true, "allow_stdio_access": false,
  },
  {
    "name": "volume:/ro", "command": null, "layers": ["cc"], "working_dir": "/", "env_rules": [], "exec_processes": [], "signals": [],
    "mounts": [], "user": {"umask": "0022", "user_idname": {"pattern": "", "strategy": "any"}, "group_idnames": []},
    "capabilities": null, "seccomp_profile_sha256": "", "allow_elevated": false, "no_new_privileges": false, "allow_stdio_access": false,
  },
]

allow_properties_access := true
allow_host_network := false

mount_device := data.framework.mount_device
unmount_device := data.framework.unmount_device
rw_mount_device := data.framework.rw_mount_device
rw_unmount_device := data.framework.rw_unmount_device
mount_overlay := data.framework.mount_overlay
unmount_overlay := data.framework.unmount_overlay
create_container := data.framework.create_container
exec_in_container := data.framework.exec_in_container
exec_external := data.framework.exec_external
shutdown_container := data.framework.shutdown_container
signal_container_process := data.framework.signal_container_process
plan9_mount := data.framework.plan9_mount
plan9_unmount := data.framework.plan9_unmount
get_properties := data.framework.get_properties
dump_stacks := data.framework.dump_stacks
runtime_logging := data.framework.runtime_logging
scratch_mount := data.framework.scratch_mount
scratch_unmount := data.framework.scratch_unmount
host_network := data.framework.host_network
reason := data.framework.reason
