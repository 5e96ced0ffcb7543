package bringup

import (
	"reflect"
	"testing"

	"coldrack.dev/internal/contract/wire"
)

// hardPlan has a configuration that its digests stand for, and routes that they do not.
func hardPlan(etcd, node, route string) *wire.NodePlan {
	return &wire.NodePlan{
		Cluster: "rack", NodeName: "node-01", Digests: wire.ConfigDigests{Etcd: etcd, Node: node},
		Files: []wire.NodeFile{
			{Path: "/etc/hard", Content: []byte(node)},
			{Path: "/etc/soft", Content: []byte(route), Soft: true},
		},
		Routes:       []wire.NodeRoute{{To: route}},
		LoadBalancer: &wire.LoadBalancer{Listen: node, Backends: []string{route}},
		Certificates: []wire.NodeCertificate{{Name: "a", CommonName: node}},
		Phases:       []wire.Phase{{Name: "config", Reason: node, Files: []string{"/etc/hard", "/etc/soft"}}},
	}
}

func TestWhatANodeTakes(t *testing.T) {
	plan := func(node, route string) *wire.NodePlan { return hardPlan("e", node, route) }
	has := func(taken string, plan, former *wire.NodePlan) *state {
		return &state{NodeAssignment: wire.NodeAssignment{Version: "v1", Plan: plan}, Taken: taken, Former: former}
	}
	sent := func(operation string, hold, rollBack bool, plan *wire.NodePlan) wire.NodeAssignment {
		return wire.NodeAssignment{Version: "v2", Operation: operation, Hold: hold, RollBack: rollBack, Plan: plan}
	}
	const hold, rollBack = true, true
	for _, test := range []struct {
		name    string
		was     *state
		sent    wire.NodeAssignment
		plan    *wire.NodePlan
		taken   string
		former  *wire.NodePlan
		signed  bool
		message string
	}{
		{"a blank node takes what it is sent", nil, sent("", false, false, plan("b", "2")), plan("b", "2"), "", nil, false, ""},
		{"a blank node that is held takes it, too", nil, sent("", hold, false, plan("b", "2")), plan("b", "2"), "", nil, false, ""},
		{"a blank node that is told to go back takes it, too", nil, sent("op", false, rollBack, plan("b", "2")), plan("b", "2"), "op", nil, false, ""},
		{"a node takes another plan and keeps the former one", has("", plan("a", "1"), nil), sent("op", false, false, plan("b", "2")),
			plan("b", "2"), "op", plan("a", "1"), false, ""},
		{"one former plan is kept, not two", has("old", plan("b", "1"), plan("a", "1")), sent("op", false, false, plan("c", "2")),
			plan("c", "2"), "op", plan("b", "1"), false, ""},
		{"of two plans of one operation, what was before both is kept", has("op", plan("b", "1"), plan("a", "1")), sent("op", false, false, plan("c", "2")),
			plan("c", "2"), "op", plan("a", "1"), false, ""},
		{"outside of operations the last plan is kept", has("", plan("b", "1"), plan("a", "1")), sent("", false, false, plan("c", "2")),
			plan("c", "2"), "", plan("b", "1"), false, ""},
		{"a plan that differs in nothing hard is no change", has("old", plan("b", "1"), plan("a", "1")), sent("op", false, false, plan("b", "2")),
			plan("b", "2"), "old", plan("a", "1"), false, ""},
		{"a held node takes the soft part", has("old", plan("a", "1"), plan("z", "1")), sent("", hold, false, plan("b", "2")),
			plan("a", "2"), "old", plan("z", "1"), true, ""},
		{"a held node takes all of a plan that differs in nothing hard", has("old", plan("a", "1"), nil), sent("", hold, false, plan("a", "2")),
			plan("a", "2"), "old", nil, false, ""},
		{"a held node of another cluster takes the new plan", has("", &wire.NodePlan{Cluster: "other", NodeName: "node-01"}, nil), sent("", hold, false, plan("b", "2")),
			plan("b", "2"), "", nil, false, ""},
		{"a held node of another name takes the new plan", has("", &wire.NodePlan{Cluster: "rack", NodeName: "node-02"}, nil), sent("", hold, false, plan("b", "2")),
			plan("b", "2"), "", nil, false, ""},
		{"a held node whose member was added takes the new plan", has("", hardPlan("", "a", "1"), nil), sent("", hold, false, plan("b", "2")),
			plan("b", "2"), "", hardPlan("", "a", "1"), false, ""},
		{"a node goes back", has("op", plan("b", "1"), plan("a", "1")), sent("op", false, rollBack, plan("b", "2")), plan("a", "2"), "", nil, true, ""},
		{"a node goes back although another plan came meanwhile", has("op", plan("b", "1"), plan("a", "1")), sent("op", false, rollBack, plan("c", "2")),
			plan("a", "2"), "", nil, true, ""},
		{"a node that has gone back stays there", has("", plan("a", "1"), nil), sent("op", false, rollBack, plan("b", "2")), plan("a", "2"), "", nil, true, ""},
		{"a node that has not taken the plan has nothing to go back from", has("old", plan("a", "1"), plan("z", "1")), sent("op", false, rollBack, plan("b", "2")),
			plan("a", "2"), "old", plan("z", "1"), true, ""},
		{"a node without a former plan says so and keeps what it has", has("op", plan("b", "1"), nil), sent("op", false, rollBack, plan("b", "2")),
			plan("b", "2"), "op", nil, false, "cannot go back: this node has no configuration from before; it keeps what it has"},
		{"a node that has gone back takes a new plan in the same operation", has("", plan("a", "1"), nil), sent("op", false, false, plan("c", "2")),
			plan("c", "2"), "op", plan("a", "1"), false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			next, message := decide(test.was, test.sent)
			if message != test.message || next.Taken != test.taken || next.Version != "v2" || (next.Signed != nil) != test.signed {
				t.Errorf("taken in %q, version %s, signed %v, message %q", next.Taken, next.Version, next.Signed, message)
			}
			if !reflect.DeepEqual(next.Plan, test.plan) {
				t.Errorf("it has\n%s\nwant\n%s", mustJSON(next.Plan), mustJSON(test.plan))
			}
			if !reflect.DeepEqual(next.Former, test.former) {
				t.Errorf("it keeps\n%s\nwant\n%s", mustJSON(next.Former), mustJSON(test.former))
			}
			// Hearing the same again changes nothing.
			again, _ := decide(next, test.sent)
			if !reflect.DeepEqual(again.Plan, next.Plan) || again.Taken != next.Taken || !reflect.DeepEqual(again.Former, next.Former) {
				t.Errorf("heard again, it becomes\n%s\nfrom\n%s", mustJSON(again), mustJSON(next))
			}
		})
	}
}

func TestMerge(t *testing.T) {
	hard, soft := hardPlan("e", "a", "1"), hardPlan("e", "b", "2")
	hard.Files = append(hard.Files, wire.NodeFile{Path: "/etc/gone", Soft: true})
	hard.Phases[0].Files = append(hard.Phases[0].Files, "/etc/gone")
	soft.Files = append(soft.Files, wire.NodeFile{Path: "/etc/new", Soft: true}, wire.NodeFile{Path: "/etc/homeless", Soft: true}, wire.NodeFile{Path: "/etc/other"})
	soft.Phases[0].Files = append(soft.Phases[0].Files, "/etc/new", "/etc/other")
	soft.Phases = append(soft.Phases, wire.Phase{Name: "another", Files: []string{"/etc/homeless"}})
	soft.ContentURL, soft.Kit = "http://10.0.0.2", &wire.NodeKit{Listen: "127.0.0.1:7446"}
	was := mustJSON([]any{hard, soft})
	got := merge(hard, soft)
	want := hardPlan("e", "a", "2")
	want.Files = append(want.Files, wire.NodeFile{Path: "/etc/new", Soft: true})
	want.Phases[0].Files = append(want.Phases[0].Files, "/etc/new")
	want.ContentURL, want.Kit = soft.ContentURL, soft.Kit
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", mustJSON(got), mustJSON(want))
	}
	if mustJSON([]any{hard, soft}) != was {
		t.Error("the plans that it was made of have changed")
	}
}
