package workload

import (
	"encoding/json"
	"unicode/utf8"
)

// storedEnv is an EnvVar in a record. A value is bytes (CRI KeyValue); JSON strings hold text
// only, so one that is not UTF-8 is stored in base64.
type storedEnv struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Bytes []byte `json:"value_bytes,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (e EnvVar) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(e.Value) {
		return json.Marshal(storedEnv{Key: e.Key, Value: e.Value})
	}
	return json.Marshal(storedEnv{Key: e.Key, Bytes: []byte(e.Value)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *EnvVar) UnmarshalJSON(data []byte) error {
	var s storedEnv
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	*e = EnvVar{Key: s.Key, Value: s.Value}
	if s.Bytes != nil {
		e.Value = string(s.Bytes)
	}
	return nil
}
