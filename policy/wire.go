// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"slices"
)

// MaxDecision is the longest text that PolicyDecision makes, in bytes, as long as the decision without input and
// reason fits.
const MaxDecision = 3072

const (
	decisionOpen  = "policyDecision< "
	decisionClose = " >policyDecision"

	reasonInvalid = "Security policy is not valid. Please check security policy or re-generate with tooling."
	reasonMissing = "Security policy is either not valid or did not provide a reason for denial. Please check security policy or re-generate with tooling."
)

// PolicyDecision is the denial as tools for Azure's guest parse it: "policyDecision< BASE64 >policyDecision" around
// a JSON object with the decision, the input and the policy's reason. Values of environment variables are redacted.
// Parts are left out, and listed under "truncated", until it has at most MaxDecision bytes. The objects of the policy
// that a reason of data.framework.reason would carry are always left out.
func (d *Denial) PolicyDecision(input Request) string {
	decision := map[string]any{"decision": "deny"}
	if in := redacted(input); in != nil {
		if d.Point != "" {
			in["rule"] = d.Point
		}
		decision["input"] = in
	}
	var truncated []string
	switch {
	case d.PolicyError != "":
		decision["reason"], decision["policyError"] = reasonInvalid, d.PolicyError
	case d.reason == reasonNone:
		decision["reason"] = reasonMissing
	default:
		decision["reason"] = map[string]any{"errors": notNil(d.Errors)}
		if d.reason == reasonFull {
			truncated = []string{"reason.error_objects"}
			decision["truncated"] = truncated
		}
	}
	text := encodeDecision(decision)
	for _, part := range []string{"input", "reason"} {
		if len(text) <= MaxDecision {
			break
		}
		delete(decision, part)
		truncated = append(truncated, part)
		decision["truncated"] = truncated
		text = encodeDecision(decision)
	}
	return text
}

func encodeDecision(decision map[string]any) string {
	text, err := json.Marshal(decision)
	if err != nil {
		text = []byte(`{"decision":"deny"}`)
	}
	return decisionOpen + base64.StdEncoding.EncodeToString(text) + decisionClose
}

func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// redacted turns a request into its JSON object, without values of environment variables and with the usual sets of
// capabilities shortened. It is nil for an unknown request.
func redacted(input Request) map[string]any {
	switch r := input.(type) {
	case CreateContainer:
		r.EnvList, r.ArgList, r.Groups, r.Mounts = redactEnv(r.EnvList), notNil(r.ArgList), notNil(r.Groups), notNil(r.Mounts)
		return withCaps(toMap(r), r.Capabilities)
	case ExecInContainer:
		r.EnvList, r.ArgList, r.Groups = redactEnv(r.EnvList), notNil(r.ArgList), notNil(r.Groups)
		return withCaps(toMap(r), r.Capabilities)
	case ExecExternal:
		r.EnvList, r.ArgList = redactEnv(r.EnvList), notNil(r.ArgList)
		return toMap(r)
	}
	if _, rule := (&State{}).rule(input); rule == nil {
		return nil
	}
	return toMap(input)
}

func redactEnv(envs []string) []string {
	out := make([]string, len(envs))
	for i, env := range envs {
		out[i] = envName(env) + "=<<redacted>>"
	}
	return out
}

func toMap(v any) map[string]any {
	text, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var m map[string]any
	if dec.Decode(&m) != nil {
		return nil
	}
	return m
}

func withCaps(m map[string]any, c *Capabilities) map[string]any {
	if c == nil || m == nil {
		return m
	}
	full := &Capabilities{}
	from, to := c.sets(), full.sets()
	for i := range from {
		*to[i] = notNil(*from[i])
	}
	m["capabilities"] = full
	for _, known := range []struct {
		caps *Capabilities
		name string
	}{{PrivilegedCapabilities(), "[privileged]"}, {DefaultCapabilities(), "[unprivileged]"}} {
		same, a, b := true, full.sets(), known.caps.sets()
		for i := range a {
			same = same && slices.Equal(*a[i], *b[i])
		}
		if same {
			m["capabilities"] = known.name
		}
	}
	return m
}
