package planner

import (
	"fmt"
	"strings"
)

// quorum is the projection of etcd's membership. Members that a running step may stop at any moment count as not healthy.
type quorum struct {
	voters, healthy, learners int
	// dead are the names of voters that are not healthy.
	dead []string
}

func quorumOf(members []Member) quorum {
	var q quorum
	for _, m := range members {
		switch {
		case m.Learner:
			q.learners++
		case m.Healthy:
			q.voters, q.healthy = q.voters+1, q.healthy+1
		default:
			q.voters++
			q.dead = append(q.dead, m.Name)
		}
	}
	return q
}

func majority(voters int) int { return voters/2 + 1 }

func (q quorum) held() bool { return q.healthy >= majority(q.voters) }

func (q quorum) String() string {
	return fmt.Sprintf("%d of %d members of etcd are healthy", q.healthy, q.voters)
}

// mend is what a person can do about members that are not healthy.
func (q quorum) mend() string {
	switch {
	case q.voters == 0:
		return "let the server reach etcd"
	case len(q.dead) == 0:
		return "give the group more machines with etcd"
	case !q.held():
		return fmt.Sprintf("bring %s back, or restore a backup", strings.Join(q.dead, " or "))
	}
	return fmt.Sprintf("bring %s back, or replace the machine", strings.Join(q.dead, ", "))
}

// stop says why a member must not stop for a while; its data stays. outage is true when etcd does not answer meanwhile and
// that is allowed.
func (q quorum) stop(m *Member, downtime bool) (outage bool, reason, remedy string) {
	switch {
	case m == nil || m.Learner || !m.Healthy:
		return false, "", "" // nothing is lost
	case q.learners > 0:
		return false, "a new member of etcd is copying the data", "wait until it has its vote, or is removed"
	case q.healthy-1 >= majority(q.voters):
		return false, "", ""
	case q.voters <= 2 && q.healthy == q.voters && downtime:
		return true, "", ""
	case q.voters <= 2 && q.healthy == q.voters:
		return false, fmt.Sprintf("etcd has %d voting member(s), and stops when this one does", q.voters),
			"give the cluster three machines with etcd, or permit an outage: spec.upgrade.allowDowntime"
	}
	return false, fmt.Sprintf("%s, and without this one fewer than the majority of %d would be", q, majority(q.voters)), q.mend()
}

// remove says why a member must not be removed.
func (q quorum) remove(m *Member) (reason, remedy string) {
	if m.Learner {
		return "", "" // it has no vote
	}
	left := q.healthy
	if m.Healthy {
		left--
	}
	switch {
	case q.voters == 1:
		return "it is the only voting member of etcd", "add another one first"
	case !q.held():
		return fmt.Sprintf("%s, and a majority must agree to remove one", q), q.mend()
	case m.Healthy && q.learners > 0:
		return "a new member of etcd is copying the data", "wait until it has its vote, or is removed"
	case left < majority(q.voters-1):
		return fmt.Sprintf("%s, and without this one %d of %d would be", q, left, q.voters-1), q.mend()
	}
	return "", ""
}

// add says why no learner may be added.
func (q quorum) add() (reason, remedy string) {
	switch {
	case q.voters == 0:
		return "the members of etcd are not known", q.mend()
	case q.learners > 0:
		return "another new member of etcd is copying the data", "wait until it has its vote, or is removed"
	case q.healthy < q.voters:
		return fmt.Sprintf("%s; a member is added only while all are", q), q.mend()
	}
	return "", ""
}

// promote says why a learner must not get its vote. It counts as not healthy afterwards: it has never voted. From one member
// to two there is no other way than to trust it.
func (q quorum) promote(m *Member) (reason, remedy string) {
	switch {
	case !m.Connected || !m.Healthy:
		return "the leader has no connection to it", "start it, and let it reach the other members on port 2380"
	case !m.InSync:
		return "it is still copying the data", "wait until it is in sync"
	case q.voters == 1 && q.healthy == 1:
		return "", ""
	case q.healthy < majority(q.voters+1):
		return fmt.Sprintf("%s, and with a further vote that may fail a majority would be %d", q, majority(q.voters+1)), q.mend()
	}
	return "", ""
}
