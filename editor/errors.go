package editor

import "fmt"

// PolicyError says that a policy, or the vocabulary it is compiled for, cannot
// be used.
type PolicyError struct {
	Field   string // as in the policy's JSON
	Message string
}

func (e *PolicyError) Error() string { return "policy: " + e.Field + " " + e.Message }

func policyErrorf(field, format string, args ...any) error {
	return &PolicyError{Field: field, Message: fmt.Sprintf(format, args...)}
}

// ScoresError says that a document's scores are damaged, belong to other ids,
// or do not hold what the policy needs.
type ScoresError struct {
	Field   string // as in the scores struct; "input_ids" where the ids are at fault
	Message string
}

func (e *ScoresError) Error() string { return e.Field + " " + e.Message }

func scoresErrorf(field, format string, args ...any) error {
	return &ScoresError{Field: field, Message: fmt.Sprintf(format, args...)}
}
