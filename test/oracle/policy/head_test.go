// SPDX-License-Identifier: Apache-2.0

//go:build rego

package oracle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/open-policy-agent/opa/ast"
	"github.com/open-policy-agent/opa/rego"
	"github.com/open-policy-agent/opa/storage/inmem"

	"github.com/coffer-dev/coffer/policy"
)

// head runs the framework of hcsshim v0.15.0 (api 0.12.0, framework 0.5.0). That module cannot be built, as one of
// its dependencies is missing, so its two Rego files are read from the module cache and run here by OPA, with the
// bookkeeping that its guest does around them.
type head struct {
	compiler *ast.Compiler
	data     map[string]any
	metadata map[string]any
	stdio    map[string]bool
}

const headModule = "github.com/Microsoft/hcsshim@v0.15.0"

type headSources struct{ framework, api string }

var loadHead = sync.OnceValues(func() (headSources, error) {
	dir, err := os.MkdirTemp("", "coffer-oracle-")
	if err != nil {
		return headSources{}, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "mod", "download", "-json", headModule)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return headSources{}, fmt.Errorf("downloading %s: %w", headModule, err)
	}
	var mod struct{ Dir string }
	if err := json.Unmarshal(out, &mod); err != nil {
		return headSources{}, err
	}
	read := func(name string) string {
		text, e := os.ReadFile(filepath.Join(mod.Dir, "pkg/securitypolicy", name))
		err = errors.Join(err, e)
		return string(text)
	}
	api, framework := read("api.rego"), read("framework.rego")
	return headSources{
		api:       strings.ReplaceAll(api, "@@API_VERSION@@", strings.TrimSpace(read("version_api"))),
		framework: strings.ReplaceAll(framework, "@@FRAMEWORK_VERSION@@", strings.TrimSpace(read("version_framework"))),
	}, err
})

func needHead(t *testing.T) {
	if _, err := loadHead(); err != nil {
		t.Skipf("the newest framework cannot be had: %v", err)
	}
}

func newHead(text []byte) (*head, error) {
	src, err := loadHead()
	if err != nil {
		return nil, err
	}
	compiler, modules := ast.NewCompiler(), map[string]*ast.Module{}
	for name, code := range map[string]string{"policy.rego": string(text), "framework.rego": src.framework, "api.rego": src.api} {
		version := ast.RegoV1
		if name == "policy.rego" {
			version = ast.RegoV0
		}
		if modules[name], err = ast.ParseModuleWithOpts(name, code, ast.ParserOptions{RegoVersion: version}); err != nil {
			return nil, err
		}
	}
	if compiler.Compile(modules); compiler.Failed() {
		return nil, compiler.Errors
	}
	metadata := map[string]any{"operatingsystem": map[string]any{"ostype": "linux"}}
	return &head{compiler: compiler, metadata: metadata, stdio: map[string]bool{}, data: jsonValue(map[string]any{
		"defaultMounts": policy.DefaultMounts(), "privilegedMounts": policy.DefaultPrivilegedMounts(),
		"sandboxPrefix": "sandbox://", "hugePagesPrefix": "hugepages://", "plan9Prefix": "plan9://",
		"defaultUnprivilegedCapabilities": policy.DefaultCapabilities().Bounding,
		"defaultPrivilegedCapabilities":   policy.PrivilegedCapabilities().Bounding,
	}).(map[string]any)}, nil
}

func jsonValue(v any) any {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var out any
	if err := dec.Decode(&out); err != nil {
		panic(err)
	}
	return out
}

func (h *head) query(rule string, input map[string]any) (map[string]any, error) {
	h.data["metadata"] = h.metadata
	rs, err := rego.New(rego.Query(rule), rego.Input(input), rego.Compiler(h.compiler),
		rego.Store(inmem.NewFromObject(h.data))).Eval(context.Background())
	if err != nil {
		return nil, err
	}
	if len(rs) == 0 {
		return nil, nil
	}
	result, ok := rs[0].Expressions[0].Value.(map[string]any)
	if !ok {
		return nil, errors.New("unable to load results object from Rego query")
	}
	ops, _ := result["metadata"].([]any)
	for _, raw := range ops {
		op := raw.(map[string]any)
		name, key := op["name"].(string), op["key"].(string)
		part, _ := h.metadata[name].(map[string]any)
		if part == nil {
			part = map[string]any{}
			h.metadata[name] = part
		}
		switch op["action"] {
		case "add":
			if _, ok := part[key]; ok {
				return nil, fmt.Errorf("cannot add metadata value, key %s[%s] already exists", name, key)
			}
			part[key] = op["value"]
		case "update":
			part[key] = op["value"]
		case "remove":
			delete(part, key)
		}
	}
	delete(result, "metadata")
	return result, nil
}

// enforce is the original's dispatch.
func (h *head) enforce(point string, input map[string]any) (map[string]any, error) {
	result, err := h.query("data.policy."+point, input)
	if err != nil {
		return nil, err
	}
	info, err := h.query("data.framework.enforcement_point_info", map[string]any{"name": point, "rule": point})
	switch {
	case err != nil:
		return nil, err
	case info["unknown"] == true:
		return nil, fmt.Errorf("enforcement point rule %s does not exist", point)
	case info["invalid"] == true:
		return nil, fmt.Errorf("enforcement point rule %s is invalid", point)
	case info["version_missing"] == true:
		return nil, errors.New("policy does not define api_version")
	case len(result) == 0 && info["available"] == true:
		return nil, fmt.Errorf("rule for %s is missing from policy", point)
	case len(result) == 0 && info["use_framework"] == true:
		return h.query("data.framework."+point, input)
	}
	out := map[string]any{}
	for k, v := range info["default_results"].(map[string]any) {
		out[k] = v
	}
	for k, v := range result {
		out[k] = v
	}
	return out, nil
}

func (h *head) decide(req policy.Request) answer {
	point := req.Point()
	input := jsonValue(req).(map[string]any)
	normalise(reflect.ValueOf(req), input)
	switch r := req.(type) {
	case policy.MountDevice, policy.RWMountDevice:
		if input["mountPathRegex"] == nil {
			input["mountPathRegex"] = ".*"
		}
	case policy.CreateContainer:
		if r.Devices == nil {
			input["devices"] = []any{}
		}
		input["isSandboxContainer"] = r.IsSandboxContainer
	}
	result, err := h.enforce(point, input)
	if err != nil {
		return answer{PolicyError: true, Errors: []string{err.Error()}}
	}
	allowed, ok := result["allowed"].(bool)
	if !ok {
		return answer{PolicyError: true, Errors: []string{"no allowed"}}
	}
	if !allowed {
		input["rule"] = point
		reason, err := h.query("data.policy.reason", input)
		if err != nil {
			return answer{Errors: []string{}}
		}
		return answer{Errors: sorted(stringList(reason["errors"]))}
	}
	a := answer{Allowed: true}
	stdio, _ := result["allow_stdio_access"].(bool)
	switch r := req.(type) {
	case policy.CreateContainer:
		a.Env, a.Caps, a.Stdio = keepStrings(r.EnvList, result["env_list"]), keepCaps(r.Capabilities, result["caps_list"]), stdio
		h.stdio[r.ContainerID] = stdio
	case policy.ExecInContainer:
		a.Env, a.Caps = keepStrings(r.EnvList, result["env_list"]), keepCaps(r.Capabilities, result["caps_list"])
		a.Stdio = h.stdio[r.ContainerID]
	case policy.ExecExternal:
		a.Env, a.Stdio = keepStrings(r.EnvList, result["env_list"]), stdio
	default:
		a.Env = []string{}
	}
	return a
}

// normalise makes empty lists of nil ones, as the original's guest does.
func normalise(v reflect.Value, input map[string]any) {
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		f := v.Field(i)
		switch {
		case f.Kind() == reflect.Slice && f.IsNil():
			input[name] = []any{}
		case f.Kind() == reflect.Pointer && !f.IsNil():
			normalise(f.Elem(), input[name].(map[string]any))
		}
	}
}

func stringList(v any) []string {
	list, _ := v.([]any)
	out := []string{}
	for _, s := range list {
		out = append(out, s.(string))
	}
	return out
}

func keepStrings(asked []string, kept any) []string {
	if kept == nil {
		return sorted(asked)
	}
	in := map[string]bool{}
	for _, s := range stringList(kept) {
		in[s] = true
	}
	out := []string{}
	for _, s := range asked {
		if in[s] {
			out = append(out, s)
			in[s] = false
		}
	}
	return sorted(out)
}

func keepCaps(asked *policy.Capabilities, kept any) *policy.Capabilities {
	m, ok := kept.(map[string]any)
	if !ok {
		return sortedCaps(asked)
	}
	return &policy.Capabilities{
		Bounding: keepStrings(asked.Bounding, m["bounding"]), Effective: keepStrings(asked.Effective, m["effective"]),
		Inheritable: keepStrings(asked.Inheritable, m["inheritable"]), Permitted: keepStrings(asked.Permitted, m["permitted"]),
		Ambient: keepStrings(asked.Ambient, m["ambient"]),
	}
}
